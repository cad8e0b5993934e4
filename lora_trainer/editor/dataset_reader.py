"""Reads a data set for its editor: pictures, captions and tables, each again only when its files
have changed.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..base.errors import Refused
from ..dataset.caption_tables import TABLE_NAMES, LaidTable, look_at_table
from ..dataset.captions import caption_paths, content_of, in_table, sidecar, text_of
from ..dataset.scan import Picture, Problem, examine, remember
from .background_scan import BackgroundScan, ScanResult
from .folder_listing import FileCache, FileStamp, Listing, list_folder
from .undo_history import digest

MOST_LINES_SHOWN = 100


@dataclasses.dataclass(frozen=True)
class CaptionFile:
    """A picture's caption file: its path in the data set, its content (None: there is none)."""

    path: str
    content: bytes | None

    @property
    def version(self) -> str:
        """A name for the exact content; "" when there is no file."""
        return "" if self.content is None else digest(self.content)


class DatasetReader:
    """What the files of one data set say. What a look at each picture has shown comes from
    `examination`.
    """

    def __init__(self, folder: Path, examination: BackgroundScan) -> None:
        self._folder, self._examination = folder, examination
        self._pictures, self._versions, self._tables = FileCache(), FileCache(), FileCache()
        self._laid: tuple[Listing | None, dict[str, LaidTable]] = None, {}

    def look(self) -> Listing:
        """Look at the folders; raises `Refused` when they cannot be read."""
        try:
            return list_folder(self._folder)
        except OSError as error:
            raise Refused(
                f"The folder {str(self._folder)[:200]} cannot be read: {error.strerror or error}.",
                code="no_folder",
            ) from error

    # --- Pictures ---------------------------------------------------------------------------------

    def scan(self, listing: Listing) -> tuple[dict[str, Picture], list[Problem]]:
        """Return the pictures that can be used by file name, and those that cannot, as far as
        headers and earlier looks tell.
        """
        found, problems = {}, [Problem(path, reason) for path, reason in listing.barred.items()]
        for filename, path in listing.pictures.items():
            seen = self._picture(listing, filename, path)
            if isinstance(seen, Picture):
                found[filename] = seen
            else:
                problems.append(seen)
        self._pictures.keep_only(listing.pictures)
        return found, problems

    def _picture(self, listing: Listing, filename: str, path: Path) -> Picture | Problem:
        stamp, beside = listing.files.get(filename), listing.beside(filename)
        place, table = listing.place_of(filename), self.table(listing, filename)
        finding = self._examination.known(path, stamp) if stamp else None

        def read() -> Picture | Problem:
            if finding:
                remember(
                    path, stamp, finding.facts or finding.problem
                )  # what is damaged is known from there
            return examine(
                path,
                table.captions,
                repeats=place.repeats,
                class_words=place.class_words,
                thorough=False,
            )

        if stamp is None or (
            not beside and self._has_caption(path)
        ):  # no file, or its caption came just now
            return read()
        return self._pictures.get(
            filename, ((filename, stamp), *beside), read, other=(table, finding)
        )

    def findings(self, listing: Listing, pictures: Iterable[str]) -> dict[str, ScanResult]:
        """Return what an earlier look at these pictures has shown, where they are as they were
        then.
        """
        known = {
            name: self._examination.known(listing.pictures[name], listing.files[name])
            for name in pictures
            if name in listing.files
        }
        return {name: finding for name, finding in known.items() if finding}

    # --- Captions ---------------------------------------------------------------------------------

    def captions(self, listing: Listing) -> dict[str, str]:
        """Return every usable picture's caption, by file name."""
        return {filename: picture.caption for filename, picture in self.scan(listing)[0].items()}

    def sidecar(self, listing: Listing, filename: str) -> CaptionFile:
        """Read a picture's caption file; raises `Refused` when there is no such picture, or the
        file cannot be read.
        """
        return self.read_sidecar(filename, sidecar(picture_in(listing, filename)))

    def caption_files(self, listing: Listing, filename: str) -> list[CaptionFile]:
        """Return a picture's caption files that are there and can be read, the one that counts
        first.
        """
        found = []
        for path in caption_paths(picture_in(listing, filename)):
            with contextlib.suppress(Refused):  # too large, say: it stays where it is
                found.append(self.read_sidecar(filename, path))
        return [file for file in found if file.content is not None]

    def versions(self, listing: Listing) -> dict[str, tuple[str, str]]:
        """Return, by picture, the path and the version of its caption file; a file that cannot be
        read leaves its picture out.
        """
        found = {}
        for filename in listing.pictures:
            with contextlib.suppress(Refused):
                found[filename] = self._version(listing, filename)
        self._versions.keep_only(listing.pictures)
        return found

    def caption_without_file(self, listing: Listing, filename: str) -> str:
        """Return the caption that a picture has from a table; else the folder's class words."""
        return (
            in_table(listing.pictures[filename], self.table(listing, filename).captions)
            or listing.place_of(filename).class_words
        )

    def caption_of(self, listing: Listing, filename: str, found: CaptionFile) -> str:
        """Return a picture's caption, whose caption file was read."""
        text = None if found.content is None else text_of(found.content)
        return (
            self.caption_without_file(listing, filename)
            if text is None
            else text or listing.place_of(filename).class_words
        )

    def _version(self, listing: Listing, filename: str) -> tuple[str, str]:
        beside = listing.beside(filename)
        if not beside:
            return _neighbour(filename, sidecar(listing.pictures[filename])), ""

        def read() -> tuple[str, str]:
            found = self.sidecar(listing, filename)
            return found.path, found.version

        return self._versions.get(filename, beside, read)

    def read_sidecar(self, filename: str, path: Path) -> CaptionFile:
        """Read a file beside a picture; raises `Refused` when it cannot be read."""
        try:
            return CaptionFile(_neighbour(filename, path), content_of(path))
        except OSError as error:
            raise Refused(
                f"The caption file {path.name} cannot be read: {error.strerror or error}.",
                code="unreadable_caption",
            ) from error

    @staticmethod
    def _has_caption(path: Path) -> bool:
        return any(os.path.exists(file) for file in caption_paths(path))

    # --- Tables -----------------------------------------------------------------------------------

    def table(self, listing: Listing, filename: str) -> LaidTable:
        """Return the caption table in the folder of a picture; an empty one where there is none."""
        return self._laid_in(listing).get(listing.place_of(filename).prefix, _NO_TABLE)

    def bad_tables(self, listing: Listing) -> list[dict[str, Any]]:
        """Describe the tables of which something cannot be read: `{filename, reason, table,
        lines}`.
        """
        return [
            {
                "filename": table_in(listing, prefix),
                "reason": table.reason,
                "table": True,
                "lines": bad_lines(table),
            }
            for prefix, table in self._laid_in(listing).items()
            if table.reason
        ]

    def _laid_in(self, listing: Listing) -> dict[str, LaidTable]:
        """Return the tables by their folders; read once for a listing, however many pictures
        ask.
        """
        before, laid = self._laid
        if before is not listing:
            found = {
                place.prefix: self._read_table(path, listing.files[path])
                for place in listing.places
                if (path := table_in(listing, place.prefix))
            }
            laid = {
                prefix: laid[prefix] if laid.get(prefix) == table else table
                for prefix, table in found.items()
            }
            self._laid = listing, laid
        return laid

    def _read_table(self, path: str, stamp: FileStamp) -> LaidTable:
        return self._tables.get(path, ((path, stamp),), lambda: look_at_table(self._folder / path))


_NO_TABLE = LaidTable({})


def bad_lines(table: LaidTable) -> list[dict[str, Any]]:
    """Return a table's first bad lines: `{line, message}`."""
    return [dataclasses.asdict(problem) for problem in table.lines[:MOST_LINES_SHOWN]]


def picture_in(listing: Listing, filename: str) -> Path:
    """Return a picture's path; raises `Refused` (code "not_found") for what is no picture to edit
    here.
    """
    if filename not in listing.pictures:
        raise Refused(
            f"There is no picture {str(filename)[:200]!r} in this data set.",
            field="filename",
            code="not_found",
        )
    return listing.pictures[filename]


def pictures_of(paths: Iterable[str], listing: Listing) -> list[str]:
    """Return the pictures that paths of pictures and caption files belong to."""
    return list(
        dict.fromkeys(filename for path in paths for filename in listing.of_stem(path) or [path])
    )


def _neighbour(filename: str, path: Path) -> str:
    """Return the path in the data set of a file beside a picture."""
    return filename[: filename.rfind("/") + 1] + path.name


def table_in(listing: Listing, prefix: str) -> str | None:
    return next((prefix + name for name in TABLE_NAMES if prefix + name in listing.files), None)
