"""Reads what the files of a data set contain: pictures, captions and caption tables.

`folder_listing` finds the files without opening them; here they are opened, and each is read again
only when it has changed.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.files import read_small_file
from ..dataset.caption_tables import TABLE_NAMES, LaidTable, LineProblem, look_at_table
from ..dataset.captions import LARGEST_CAPTION_FILE_BYTES, caption_paths, in_table, sidecar, text_of
from ..dataset.images import remember
from ..dataset.sample import Picture
from ..dataset.scan import Problem, examine
from .background_scan import BackgroundScan, ScanResult
from .digests import digest_of_bytes
from .file_cache import FileCache, FileStamp
from .folder_listing import Listing, list_folder

MOST_BAD_LINES = 100
_NO_TABLE = LaidTable({})


class BadLine(TypedDict):
    """A line of a caption table that cannot be read, as JSON."""

    line: int
    message: str


class UnusableFile(TypedDict):
    """A file that cannot be used, as JSON."""

    filename: str
    reason: str


class ProblemRow(UnusableFile, total=False):
    """A file of a data set that cannot be used; of a caption table, which lines."""

    table: bool
    lines: list[BadLine]


@dataclasses.dataclass(frozen=True)
class CaptionFile:
    """A picture's caption file: its path in the data set, its content (None: there is none)."""

    path: str
    content: bytes | None

    @property
    def version(self) -> str:
        """The digest of the content; "" when there is no file."""
        return "" if self.content is None else digest_of_bytes(self.content)


class CaptionVersion(NamedTuple):
    """A caption file's path in the data set, and the version of its content."""

    path: str
    version: str


class _TablesOfListing(NamedTuple):
    """The tables of one listing, by folder; replaced as a whole, for threads read it."""

    listing: Listing | None
    tables: dict[str, LaidTable]


class DatasetReader:
    """Reads one data set; `background_scan` knows which pictures are damaged."""

    def __init__(self, folder: Path, background_scan: BackgroundScan) -> None:
        self._folder = folder
        self._background_scan = background_scan
        self._pictures: FileCache[Picture | Problem] = FileCache()
        self._versions: FileCache[CaptionVersion] = FileCache()
        self._tables: FileCache[LaidTable] = FileCache()
        self._newest_tables = _TablesOfListing(None, {})

    def list_files(self) -> Listing:
        """List the files of the folders; raises `Refused` when they cannot be read."""
        try:
            return list_folder(self._folder)
        except OSError as error:
            raise Refused(
                f"The folder {str(self._folder)[:200]} cannot be read: {error.strerror or error}.",
                code=ErrorCode.NO_FOLDER,
            ) from error

    # --- Pictures ---------------------------------------------------------------------------------

    def scan(self, listing: Listing) -> tuple[dict[str, Picture], list[Problem]]:
        """Return the usable pictures by file name, and the others, as far as headers and the
        background scan tell.
        """
        usable: dict[str, Picture] = {}
        problems = [Problem(path, reason) for path, reason in listing.barred.items()]
        for filename, path in listing.pictures.items():
            found = self._picture(listing, filename, path)
            if isinstance(found, Picture):
                usable[filename] = found
            else:
                problems.append(found)
        self._pictures.keep_only(listing.pictures)
        return usable, problems

    def _picture(self, listing: Listing, filename: str, path: Path) -> Picture | Problem:
        stamp = listing.files.get(filename)
        beside = listing.beside(filename)
        place = listing.place_of(filename)
        table = self.table(listing, filename)
        scanned = self._background_scan.known(path, stamp) if stamp else None

        def read() -> Picture | Problem:
            if scanned and scanned.problem and scanned.tried_at is not None:
                return Problem(path, scanned.problem.message)
            if scanned and stamp and (found := scanned.facts or scanned.problem):
                remember(path, stamp.st_mtime_ns, stamp.st_size, found)
            return examine(
                path,
                table.captions,
                repeats=place.repeats,
                class_words=place.class_words,
                thorough=False,
            )

        has_new_caption = not beside and self._has_caption(path)  # newer than the listing
        if stamp is None or has_new_caption:
            return read()
        files = ((filename, stamp), *beside)
        return self._pictures.get(filename, files, read, other=(table, scanned))

    def scan_results(self, listing: Listing, pictures: Iterable[str]) -> dict[str, ScanResult]:
        """Return what the background scan found of these pictures, where they are unchanged."""
        found = {}
        for filename in pictures:
            if filename in listing.files:
                path, stamp = listing.pictures[filename], listing.files[filename]
                if result := self._background_scan.known(path, stamp):
                    found[filename] = result
        return found

    # --- Captions ---------------------------------------------------------------------------------

    def captions(self, listing: Listing) -> dict[str, str]:
        """Return every usable picture's caption, by file name."""
        return {filename: picture.caption for filename, picture in self.scan(listing)[0].items()}

    def versions_and_captions(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the version of every picture's caption file, and every picture's caption.

        Versions are read first: what changes in between has another version then.
        """
        listing = self.list_files()
        versions = {filename: found.version for filename, found in self.versions(listing).items()}
        return versions, self.captions(listing)

    def caption_file(self, listing: Listing, filename: str) -> CaptionFile:
        """Read a picture's caption file; raises `Refused` for no such picture, and for a file that
        cannot be read.
        """
        return self.read_caption_file(filename, sidecar(picture_in(listing, filename)))

    def caption_files(self, listing: Listing, filename: str) -> list[CaptionFile]:
        """Return the existing caption files of a picture that can be read, the one that counts
        first.
        """
        found = []
        for path in caption_paths(picture_in(listing, filename)):
            with contextlib.suppress(Refused):  # for example a file that is too large
                found.append(self.read_caption_file(filename, path))
        return [file for file in found if file.content is not None]

    def versions(self, listing: Listing) -> dict[str, CaptionVersion]:
        """Return the version of each picture's caption file; a picture whose file cannot be read is
        left out.
        """
        found = {}
        for filename in listing.pictures:
            with contextlib.suppress(Refused):
                found[filename] = self._version(listing, filename)
        self._versions.keep_only(listing.pictures)
        return found

    def caption_of(self, listing: Listing, filename: str, file: CaptionFile) -> str:
        """Return the caption of a picture whose caption file was read: the file's, the table's if
        there is no file, or the folder's class words.
        """
        if file.content is None:
            caption = in_table(listing.pictures[filename], self.table(listing, filename).captions)
        else:
            caption = text_of(file.content)
        return caption or listing.place_of(filename).class_words

    def _version(self, listing: Listing, filename: str) -> CaptionVersion:
        beside = listing.beside(filename)
        if not beside:
            path = sidecar(listing.pictures[filename])
            return CaptionVersion(_path_beside(filename, path), "")

        def read() -> CaptionVersion:
            found = self.caption_file(listing, filename)
            return CaptionVersion(found.path, found.version)

        return self._versions.get(filename, beside, read)

    def read_caption_file(self, filename: str, path: Path) -> CaptionFile:
        """Read a file beside a picture; raises `Refused` when it cannot be read."""
        try:
            return CaptionFile(
                _path_beside(filename, path),
                read_small_file(path, most_bytes=LARGEST_CAPTION_FILE_BYTES),
            )
        except OSError as error:
            raise Refused(
                f"The caption file {path.name} cannot be read: {error.strerror or error}.",
                code=ErrorCode.UNREADABLE_CAPTION,
            ) from error

    @staticmethod
    def _has_caption(path: Path) -> bool:
        return any(os.path.exists(file) for file in caption_paths(path))

    # --- Tables -----------------------------------------------------------------------------------

    def table(self, listing: Listing, filename: str) -> LaidTable:
        """Return the caption table in the folder of a picture; an empty one where there is none."""
        return self._tables_in(listing).get(listing.place_of(filename).prefix, _NO_TABLE)

    def bad_tables(self, listing: Listing) -> list[ProblemRow]:
        """Describe the tables of which something cannot be read."""
        return [
            {
                "filename": path,
                "reason": table.reason,
                "table": True,
                "lines": first_bad_lines(table.lines),
            }
            for prefix, table in self._tables_in(listing).items()
            if table.reason and (path := table_in(listing, prefix))
        ]

    def _tables_in(self, listing: Listing) -> dict[str, LaidTable]:
        """Return the tables by their folders, read once for a listing.

        A table that reads the same is the same object, which makes comparing quick.
        """
        newest = self._newest_tables
        if newest.listing is listing:
            return newest.tables
        tables = {}
        for place in listing.places:
            if path := table_in(listing, place.prefix):
                table = self._read_table(path, listing.files[path])
                known = newest.tables.get(place.prefix)
                tables[place.prefix] = known if known == table else table
        self._newest_tables = _TablesOfListing(listing, tables)
        return tables

    def _read_table(self, path: str, stamp: FileStamp) -> LaidTable:
        return self._tables.get(path, ((path, stamp),), lambda: look_at_table(self._folder / path))


def first_bad_lines(problems: Sequence[LineProblem]) -> list[BadLine]:
    """Return the first bad lines of a table."""
    return [bad_line(problem) for problem in problems[:MOST_BAD_LINES]]


def bad_line(problem: LineProblem) -> BadLine:
    return {"line": problem.line, "message": problem.message}


def picture_in(listing: Listing, filename: str) -> Path:
    """Return a picture's path; raises `Refused` (code "not_found") for what is no picture to edit
    here.
    """
    if filename not in listing.pictures:
        raise Refused(
            f"There is no picture {str(filename)[:200]!r} in this data set.",
            field="filename",
            code=ErrorCode.NOT_FOUND,
        )
    return listing.pictures[filename]


def pictures_of(paths: Iterable[str], listing: Listing) -> list[str]:
    """Return the pictures that paths of pictures and caption files belong to."""
    pictures: dict[str, None] = {}
    for path in paths:
        pictures.update(dict.fromkeys(listing.of_stem(path) or [path]))
    return list(pictures)


def _path_beside(filename: str, path: Path) -> str:
    """Return the path in the data set of a file beside a picture."""
    return filename[: filename.rfind("/") + 1] + path.name


def table_in(listing: Listing, prefix: str) -> str | None:
    """Return the path of the caption table in a folder of the data set."""
    return next((prefix + name for name in TABLE_NAMES if prefix + name in listing.files), None)
