"""Values that were read from files, kept while those files stay the same."""

import dataclasses
import os
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

SETTLED_NS = 2_000_000_000  # a file system's clock may tick this slowly (FAT); most tick every 4 ms
Value = TypeVar("Value")


class FileStamp(NamedTuple):
    """The state of a file by its time stamps and size; names are those of `os.stat_result`."""

    st_mtime_ns: int
    st_size: int
    st_ctime_ns: int


def stamp_of(stat: os.stat_result) -> FileStamp:
    return FileStamp(stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns)


StampedFiles = tuple[tuple[str, FileStamp], ...]


@dataclasses.dataclass(frozen=True)
class _Entry(Generic[Value]):
    files: StampedFiles
    other: object
    value: Value


class FileCache(Generic[Value]):
    """Keeps values by key as long as the stamps of the files they were read from are the same.

    A file may be written twice within one tick of the clock that stamps it, and look the same after
    the second time. So nothing is kept of files that changed in the last seconds.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry[Value]] = {}

    def get(
        self, key: Hashable, files: StampedFiles, read: Callable[[], Value], *, other: object = None
    ) -> Value:
        """Return the value that was read from files of these stamps, and with an equal `other`;
        else read it now.

        `files` must have been stamped before this is called, and name at least one.
        """
        known = self._entries.get(key)
        if known is not None and known.files == files and known.other == other:
            return known.value
        value = read()
        if files and all(_is_settled(stamp) for _, stamp in files):
            self._entries[key] = _Entry(files, other, value)
        return value

    def keep_only(self, keys: Iterable[Hashable]) -> None:
        """Forget the values of all other keys."""
        kept = set(keys)
        if len(self._entries) > len(kept):
            entries = list(self._entries.items())  # a copy: another thread may add some
            self._entries = {key: entry for key, entry in entries if key in kept}


def _is_settled(stamp: FileStamp) -> bool:
    return time.time_ns() - max(stamp.st_mtime_ns, stamp.st_ctime_ns) > SETTLED_NS
