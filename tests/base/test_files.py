"""Files are there whole or not at all, and nothing is left behind."""

import os

import pytest

from lora_trainer.base import files
from lora_trainer.base.files import (
    flush_folders,
    flushed_temporaries,
    remove_leftovers,
    write_atomically,
)

modes = pytest.mark.skipif(os.name == "nt", reason="modes are Unix's")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_new_or_takes_the_place_of_the_old(tmp_path):
    for content in (b"one", b"two", b""):
        write_atomically(tmp_path / "a.txt", content, check=True)
        assert (tmp_path / "a.txt").read_bytes() == content and names(tmp_path) == ["a.txt"]


@modes
def test_an_old_file_keeps_its_mode(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"old")
    os.chmod(tmp_path / "a.txt", 0o640)
    write_atomically(tmp_path / "a.txt", b"new")
    with flushed_temporaries({tmp_path / "a.txt": b"newer"}) as temporaries:
        assert temporaries[tmp_path / "a.txt"].stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, step):
    def fail(*arguments):
        raise OSError("disk full")

    (tmp_path / "a.txt").write_bytes(b"old")
    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"old" and names(tmp_path) == ["a.txt"]


def test_content_that_reads_back_otherwise_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"old")
    monkeypatch.setattr(files.Path, "read_bytes", lambda path: b"other")
    with pytest.raises(OSError, match="does not read back"):
        write_atomically(tmp_path / "a.txt", b"new", check=True)
    monkeypatch.undo()
    assert (tmp_path / "a.txt").read_bytes() == b"old" and names(tmp_path) == ["a.txt"]


def test_many_are_prepared_at_once_and_those_that_stay_are_deleted(tmp_path):
    (tmp_path / "sub").mkdir()
    contents = {tmp_path / "a": b"1", tmp_path / "sub" / "b": b"2", tmp_path / "c": b"3"}
    with flushed_temporaries(contents) as temporaries:
        assert {target: path.read_bytes() for target, path in temporaries.items()} == contents
        assert not any(target.exists() for target in contents)
        for target in (tmp_path / "a", tmp_path / "sub" / "b"):
            os.replace(temporaries[target], target)
    flush_folders([tmp_path, tmp_path / "not there"])
    assert names(tmp_path) == ["a", "sub"] and names(tmp_path / "sub") == ["b"]


def test_of_many_none_is_left_where_one_fails(tmp_path):
    with pytest.raises(OSError), flushed_temporaries({tmp_path / "a": b"", tmp_path / "no/b": b""}):
        pytest.fail("one has no folder")
    assert names(tmp_path) == []


def test_leftovers_are_removed_and_nothing_that_only_looks_alike(tmp_path):
    left, folder = f".{'a' * 32}.tmp", f".{'b' * 32}.tmp"
    (tmp_path / left).write_bytes(b"")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "0").write_bytes(b"")
    for name in ("a.tmp", ".mine.tmp", f".{'a' * 31}.tmp", f".{'A' * 32}.tmp"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers([tmp_path, tmp_path / "not there"], older_than_seconds=60)
    assert {left, folder} <= set(names(tmp_path))
    os.utime(tmp_path / left, (0, 0))
    remove_leftovers([tmp_path], older_than_seconds=60)
    assert left not in names(tmp_path) and folder in names(tmp_path)
    remove_leftovers([tmp_path])
    assert names(tmp_path) == sorted(["a.tmp", ".mine.tmp", f".{'a' * 31}.tmp", f".{'A' * 32}.tmp"])
