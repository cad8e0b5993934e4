"""Files are changed all or none, whatever another program or the disk does in that moment."""

import os

import pytest

from lora_trainer.editor.file_changes import Change, FileChanger
from tests.support.histories import text


def test_a_text_that_changes_in_the_moment_of_writing_is_left_alone(history, place, monkeypatch):
    for name in ("a.txt", "b.txt"):
        text(place, name)
    real = FileChanger.apply

    def write(self, changes, **settings):
        (place / "b.txt").write_bytes(b"just now")
        return real(self, changes, **settings)

    monkeypatch.setattr(FileChanger, "apply", write)
    assert [
        change.path
        for change in history.run(
            "edit", [Change(name, b"old\n", b"new") for name in ("a.txt", "b.txt")]
        )
    ] == ["a.txt"]
    monkeypatch.undo()
    assert (place / "b.txt").read_bytes() == b"just now" and history.undo().paths == ["a.txt"]


def test_a_folder_that_is_gone_is_made_again(history, place):
    (place / "10_cat").mkdir()
    (place / "10_cat" / "a.png").write_bytes(b"picture")
    history.run(
        "delete", [Change("10_cat/a.png", history.files.trash_name_of("10_cat/a.png"), None)]
    )
    (place / "10_cat").rmdir()
    history.undo()
    assert (place / "10_cat" / "a.png").read_bytes() == b"picture"


def test_a_full_disk_is_said_and_undo_takes_back_what_was_written(history, place, monkeypatch):
    from lora_trainer.editor import file_changes as module

    real, left = module.flushed_temporaries, [2]

    def full(contents):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return real(contents)

    names = [text(place, f"{number}.txt") for number in range(5)]
    monkeypatch.setattr(module, "flushed_temporaries", full)
    monkeypatch.setattr(module, "BATCH", 1)
    with pytest.raises(OSError):
        history.run("edit", [Change(name, b"old\n", b"new") for name in names])
    assert sorted((place / name).read_bytes() for name in names) == [b"new"] * 2 + [b"old\n"] * 3
    with pytest.raises(OSError):
        history.undo()
    assert history.labels()["undo"] == "edit"
    monkeypatch.undo()
    history.undo()
    assert {(place / name).read_bytes() for name in names} == {b"old\n"}


def test_every_content_of_a_batch_is_flushed_before_the_first_name_changes(
    history, place, monkeypatch
):
    """And the folder before the step counts as written: then a power cut leaves each file old or
    new, and the database knows which.
    """
    from lora_trainer.editor import file_changes as module

    done, flush, put = [], os.fsync, module.replace_file
    names = [text(place, f"{number}.txt") for number in range(5)]

    def fsync(number):
        done.append(
            "flush folder" if os.path.samestat(os.fstat(number), os.stat(place)) else "flush"
        )
        flush(number)

    def replace_file(source, target):
        done.append("put")
        put(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(module, "replace_file", replace_file)
    monkeypatch.setattr(module, "BATCH", 3)
    history.run("edit", [Change(name, b"old\n", b"new") for name in names])
    assert done == ["flush"] * 3 + ["put"] * 3 + ["flush"] * 2 + ["put"] * 2 + ["flush folder"]


def test_a_text_that_changes_while_others_are_flushed_is_left_alone(history, place, monkeypatch):
    flush, names = os.fsync, [text(place, f"{number}.txt") for number in range(3)]

    def fsync(number):
        (place / "1.txt").write_bytes(b"just now")
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    made = history.run("edit", [Change(name, b"old\n", b"new") for name in names])
    assert [change.path for change in made] == ["0.txt", "2.txt"] and (
        place / "1.txt"
    ).read_bytes() == b"just now"
    assert not list(place.glob(".*"))
