"""Which files are in a data set's folders, from the folders' entries alone: no file is opened."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..base.paths import is_inside
from ..base.text import is_plain_text
from ..dataset.scan import is_other_folder, is_picture_name, read_kohya_name
from .file_cache import FileStamp, StampedFiles, stamp_of


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
    """The files of a data set, by their path in it; hidden ones are left out.

    `pictures` are those that can be edited, in order; `barred` are the others, with the reason.
    """

    folder: Path
    places: list[Place]
    files: dict[str, FileStamp]
    pictures: dict[str, Path]
    barred: dict[Path, str]

    @functools.cached_property
    def revision(self) -> str:
        """Return 16 hexadecimal digits that name the state of all files, within this process."""
        state = frozenset(
            (path, stamp.st_mtime_ns, stamp.st_size) for path, stamp in self.files.items()
        )
        return f"{hash(state) & (1 << 64) - 1:016x}"

    def of_stem(self, path: str) -> list[str]:
        """Return the pictures that a caption file belongs to: those of the same stem."""
        if is_picture_name(path):
            return []
        return self._pictures_by_stem.get(_stem(path), [])

    def beside(self, picture: str) -> StampedFiles:
        """Return the files that may hold a picture's caption, each with its stamp."""
        return tuple(self._others_by_stem.get(_stem(picture), ()))

    def place_of(self, path: str) -> Place:
        """Return the folder that a file lies in."""
        return self._places_by_prefix[path[: path.rfind("/") + 1]]

    def pictures_sharing_caption(self) -> dict[str, list[str]]:
        """Return, for each picture whose caption file is also another's, those others."""
        sharing = {}
        for names in self._pictures_by_stem.values():
            if len(names) > 1:
                for name in names:
                    sharing[name] = [other for other in names if other != name]
        return sharing

    def after(self, paths: Iterable[str]) -> "Listing":
        """Return this listing with the present state of these files, and of no others."""
        files, pictures = dict(self.files), dict(self.pictures)
        for path in paths:
            try:
                files[path] = stamp_of(os.stat(self.folder / path))
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
    """List the files of a data set and its kohya subfolders; raises OSError when its own folder
    cannot be read.
    """
    repeats, class_words = read_kohya_name(folder) or (1, "")
    listing = Listing(folder, [], {}, {}, {})
    entries = list(_entries(folder))
    _add_place(listing, Place(folder, "", repeats, class_words), entries)
    for name in sorted(entry.name for entry in entries if _is_folder(entry)):
        path = folder / name
        kohya = read_kohya_name(path)
        if kohya and is_other_folder(path, folder):
            _add_place(listing, Place(path, f"{name}/", *kohya), list(_entries(path)))
    return listing


def _add_place(listing: Listing, place: Place, entries: list[os.DirEntry[str]]) -> None:
    """Add the files of one folder to a listing."""
    listing.places.append(place)
    is_subfolder = bool(place.prefix)
    is_outside = is_subfolder and _leads_out(place.path, listing.folder)
    pictures = [entry for entry in entries if is_picture_name(entry.name)]
    for entry in sorted(pictures, key=lambda entry: entry.name):
        path = place.path / entry.name
        if reason := _reason_against(path, is_outside or _leads_out(path, listing.folder)):
            listing.barred[path] = reason
        else:
            listing.pictures[place.prefix + entry.name] = path
    for entry in entries:
        if stamp := _stamp_of_entry(entry):
            listing.files[place.prefix + _as_text(entry.name)] = stamp


def _leads_out(path: Path, folder: Path) -> bool:
    return path.is_symlink() and not is_inside(path, folder)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stamp_of_entry(entry: os.DirEntry[str]) -> FileStamp | None:
    """Return the stamp of a regular file; None for anything else, or a file that is gone."""
    try:
        return stamp_of(entry.stat()) if entry.is_file() else None
    except OSError:
        return None


def _reason_against(path: Path, is_outside: bool) -> str:
    """Say why a picture cannot be edited here though it can be read; "" when it can."""
    if is_outside:
        return (
            f"{path.name} is a link, or in a folder that is one, that leads out of the data set, or"
            " nowhere."
        )
    if not path.name.isascii() and not is_plain_text(str(path)):
        return "Its name is not in UTF-8; rename it."
    return ""


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _as_text(name: str) -> str:
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "replace")
