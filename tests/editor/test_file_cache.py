"""Values that were read from files are kept while the files stay the same."""

import time

import pytest

from lora_trainer.editor.file_cache import SETTLED_NS, FileCache, FileStamp, stamp_of

OLD = FileStamp(st_mtime_ns=10**18, st_size=3, st_ctime_ns=10**18)


@pytest.fixture
def cache():
    return FileCache()


@pytest.fixture
def read():
    """Count what is read: the first value is 1."""
    numbers = iter(range(1, 100))
    return lambda: next(numbers)


def test_a_stamp_is_that_of_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    stat = (tmp_path / "a").stat()
    assert stamp_of(stat) == FileStamp(stat.st_mtime_ns, 3, stat.st_ctime_ns)


def test_what_is_the_same_is_not_read_again(cache, read):
    for _ in range(3):
        assert cache.get("a", (("a.png", OLD),), read, other="table") == 1


@pytest.mark.parametrize(
    "files, other",
    [
        ((("a.png", OLD._replace(st_size=4)),), "table"),
        ((("a.png", OLD._replace(st_mtime_ns=1)),), "table"),
        ((("a.png", OLD._replace(st_ctime_ns=1)),), "table"),
        ((("b.png", OLD),), "table"),
        ((("a.png", OLD), ("a.txt", OLD)), "table"),
        ((("a.png", OLD),), "another"),
    ],
)
def test_what_changed_is_read_again(cache, read, files, other):
    cache.get("a", (("a.png", OLD),), read, other="table")
    assert cache.get("a", files, read, other=other) == 2
    assert cache.get("a", files, read, other=other) == 2


@pytest.mark.parametrize("field", ["st_mtime_ns", "st_ctime_ns"])
def test_nothing_is_kept_of_a_file_that_changed_just_now(cache, read, field):
    young = OLD._replace(**{field: time.time_ns()})
    settled = OLD._replace(**{field: time.time_ns() - 2 * SETTLED_NS})
    assert [cache.get("a", (("a", OLD), ("b", young)), read) for _ in range(2)] == [1, 2]
    assert [cache.get("a", (("a", settled),), read) for _ in range(2)] == [3, 3]


def test_without_a_file_nothing_is_kept(cache, read):
    assert [cache.get("a", (), read) for _ in range(2)] == [1, 2]


def test_other_keys_are_forgotten(cache, read):
    files = (("a", OLD),)
    assert [cache.get(key, files, read) for key in "ab"] == [1, 2]
    cache.keep_only(["b"])
    assert [cache.get(key, files, read) for key in "ba"] == [2, 3]
