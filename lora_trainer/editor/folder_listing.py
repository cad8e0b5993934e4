"""What lies in a data set's folders, from one look at their entries: no file is opened. And what
was read from files, kept while they stay the same.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..base.paths import lies_in
from ..dataset.scan import is_other_folder, is_picture_name, read_kohya_name
from ..settings.config import is_plain_text

SETTLED_NS = (
    2_000_000_000  # a file system's clock may tick this slowly (FAT); most do it every 4 ms
)


class FileStamp(NamedTuple):
    """What the system tells of a file's state; the names are those of `os.stat_result`."""

    st_mtime_ns: int
    st_size: int
    st_ctime_ns: int


Files = tuple[tuple[str, FileStamp], ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with pictures: the data set's own, with prefix "", or a subfolder of kohya's such as
    "10_cat/".
    """

    path: Path
    prefix: str
    repeats: int
    class_words: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a data set, by their path in it: `files` are regular and not hidden.

    `pictures` are those to edit, in order; `barred` are pictures that cannot be edited here, with
    the reason.
    """

    folder: Path
    places: list[Place]
    files: dict[str, FileStamp]
    pictures: dict[str, Path]
    barred: dict[Path, str]

    @functools.cached_property
    def revision(self) -> str:
        """Name the state of all files, in 16 hexadecimal digits; another process names it
        otherwise.
        """
        told = frozenset(
            (path, stamp.st_mtime_ns, stamp.st_size) for path, stamp in self.files.items()
        )
        return f"{hash(told) & (1 << 64) - 1:016x}"

    def of_stem(self, path: str) -> list[str]:
        """Return the pictures whose caption file a path is: those of the same stem."""
        return [] if is_picture_name(path) else self._pictures_by_stem.get(_stem(path), [])

    def beside(self, picture: str) -> Files:
        """Return the files that may hold a picture's caption, each with its stamp."""
        return tuple(self._others_by_stem.get(_stem(picture), ()))

    def place_of(self, path: str) -> Place:
        """Return the folder that a file lies in."""
        return self._places_by_prefix[path[: path.rfind("/") + 1]]

    def sharing(self) -> dict[str, list[str]]:
        """Return, for each picture whose caption file is also another's, those others."""
        groups = [names for names in self._pictures_by_stem.values() if len(names) > 1]
        return {
            name: [other for other in names if other != name] for names in groups for name in names
        }

    def after(self, paths: Iterable[str]) -> "Listing":
        """Return what it would be if only these files had changed since, as they are now."""
        files, pictures = dict(self.files), dict(self.pictures)
        for path in paths:
            try:
                files[path] = _stamp(os.stat(self.folder / path))
                if is_picture_name(path):
                    pictures[path] = self.folder / path
            except OSError:
                files.pop(path, None)
                pictures.pop(path, None)
        return dataclasses.replace(self, files=files, pictures=pictures)

    @functools.cached_property
    def _places_by_prefix(self) -> dict[str, Place]:
        return {place.prefix: place for place in self.places}

    @functools.cached_property
    def _pictures_by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for filename in self.pictures:
            found.setdefault(_stem(filename), []).append(filename)
        return found

    @functools.cached_property
    def _others_by_stem(self) -> dict[str, list[tuple[str, FileStamp]]]:
        found: dict[str, list[tuple[str, FileStamp]]] = {}
        for path, stamp in self.files.items():
            if not is_picture_name(path):
                found.setdefault(_stem(path), []).append((path, stamp))
        return found


def list_folder(folder: Path) -> Listing:
    """Look at a data set's folders. Raises OSError when its own cannot be read."""
    own = read_kohya_name(folder) or (1, "")
    places, files, pictures, barred = [Place(folder, "", *own)], {}, {}, {}
    for place in places:
        found = list(_entries(place.path))
        if not place.prefix:
            places += [
                Place(folder / name, f"{name}/", *kohya)
                for name in sorted(entry.name for entry in found if _is_folder(entry))
                if (kohya := read_kohya_name(folder / name))
                and is_other_folder(folder / name, folder)
            ]
        outside = bool(place.prefix) and place.path.is_symlink() and not lies_in(place.path, folder)
        for entry in sorted(
            (entry for entry in found if is_picture_name(entry.name)), key=lambda entry: entry.name
        ):
            path = place.path / entry.name
            if reason := _reason_against(
                path, outside or (entry.is_symlink() and not lies_in(path, folder))
            ):
                barred[path] = reason
            else:
                pictures[place.prefix + entry.name] = path
        files.update(
            (place.prefix + _text(entry.name), stamp)
            for entry in found
            if (stamp := _stamp_of(entry))
        )
    return Listing(folder, places, files, pictures, barred)


class FileCache:
    """Values that were read from files, kept while the stamps of those files stay the same.

    A file may be written twice within one tick of the clock that stamps it, and look the same after
    the second time. So nothing is kept of files that changed in the last moments: they are read
    again.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple[Files, Any, Any]] = {}

    def get(
        self, key: Hashable, files: Files, read: Callable[[], Any], *, other: Any = None
    ) -> Any:
        """Return what `read` has returned for files of these stamps, and for `other`, or returns
        now.

        `files` must have been looked at before this is called, and name at least one.
        """
        known = self._values.get(key)
        if known is not None and known[0] == files and known[1] == other:
            return known[2]
        value = read()
        if files and all(_is_settled(stamp) for _, stamp in files):
            self._values[key] = files, other, value
        return value

    def keep_only(self, keys: Iterable[Hashable]) -> None:
        """Forget what belongs to no file any more."""
        kept = set(keys)
        if len(self._values) > len(kept):
            self._values = {key: value for key, value in list(self._values.items()) if key in kept}


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stamp_of(entry: os.DirEntry) -> FileStamp | None:
    """Return the stamp of a regular file; None for anything else, or when it went while we
    looked.
    """
    try:
        return _stamp(entry.stat()) if entry.is_file() else None
    except OSError:
        return None


def _stamp(stat: os.stat_result) -> FileStamp:
    return FileStamp(stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns)


def _is_settled(stamp: FileStamp) -> bool:
    return time.time_ns() - max(stamp.st_mtime_ns, stamp.st_ctime_ns) > SETTLED_NS


def _reason_against(path: Path, outside: bool) -> str:
    """Say why a picture cannot be edited here though it can be read; nothing when it can."""
    if outside:
        return (
            f"{path.name} is a link, or in a folder that is one, that leads out of the data set, or"
            " nowhere."
        )
    return (
        ""
        if path.name.isascii() or is_plain_text(str(path))
        else "Its name is not in UTF-8; rename it."
    )


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _text(name: str) -> str:
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "replace")
