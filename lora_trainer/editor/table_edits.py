"""Caption tables of one data set: captions imported from an uploaded table and exported to one, and
a metadata.csv or metadata.jsonl in the folder that is read, replaced or deleted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.paths import is_inside
from ..base.text import ENCODINGS, decode
from ..dataset import caption_tables
from .dataset_reader import BadLine, bad_line, first_bad_lines
from .digests import digest_of_bytes
from .edited_dataset import CaptionChange, EditedDataset, EditResult, is_table
from .file_changes import Change
from .folder_listing import Listing

Rows = dict[str, caption_tables.Row]
"""A table's rows by the file name of the picture that they belong to."""


class SetCaptions(Protocol):
    """`DataSetEditor.set_captions`."""

    def __call__(
        self, captions: Mapping[str, str], *, versions: Mapping[str, str] | None, label: str
    ) -> EditResult: ...


class ImportedCaption(CaptionChange):
    line: int


class ImportReport(TypedDict):
    """What an uploaded table would change, and what of it cannot be used, line by line."""

    encoding: str
    encodings: list[str]  # the ones to choose from
    rows: int
    unchanged: int
    changes: list[ImportedCaption]
    problems: list[BadLine]


class AppliedImport(ImportReport, EditResult):
    pass


class TableView(TypedDict):
    """A caption table as the page edits it; `reason` says why lines of it cannot be used."""

    filename: str
    text: str
    version: str
    reason: str
    lines: list[BadLine]


class TableEdits:
    """Imports, exports and mends caption tables."""

    def __init__(self, dataset: EditedDataset, set_captions: SetCaptions) -> None:
        self._dataset = dataset
        self._set_captions = set_captions

    def import_captions(
        self,
        name: str,
        data: bytes,
        *,
        encoding: str | None = None,
        apply: bool = False,
        versions: Mapping[str, str] | None = None,
    ) -> ImportReport | AppliedImport:
        """Read captions from an uploaded table and report what it would change, line by line.

        With `apply` the captions are written, as one step; bad lines are left out.
        """
        with self._dataset.lock:
            seen_versions, captions = self._dataset.reader.versions_and_captions()
            if not encoding:
                encoding = caption_tables.fitting_encoding(name, data, captions)
            table = caption_tables.parse_table(name, data, encoding=encoding)
            rows, unmatched = caption_tables.match_rows(table, captions)
            problems = [
                *table.problems,
                *unmatched,
                *self._drop_rivals(rows),
                *_drop_empty(rows, captions),
            ]
            changed = {
                filename: row for filename, row in rows.items() if row.caption != captions[filename]
            }
            report: ImportReport = {
                "encoding": table.encoding,
                "encodings": list(ENCODINGS),
                "rows": len(table.rows) + len(table.problems),
                "unchanged": len(rows) - len(changed),
                "changes": _imported_captions(changed, captions, seen_versions),
                "problems": _in_order(problems),
            }
            if not apply:
                return report
            result = self._set_captions(
                {filename: row.caption for filename, row in changed.items()},
                versions={**seen_versions, **(versions or {})},
                label=f"Captions from {name}",
            )
            return {**report, **result}

    def export_captions(self, format: str) -> bytes:
        """Return every caption as a metadata.csv ("csv") or metadata.jsonl ("jsonl")."""
        formats = {"csv": caption_tables.format_csv, "jsonl": caption_tables.format_jsonl}
        if format not in formats:
            raise Refused(
                f"The format {format[:20]!r} is not known; expected csv or jsonl.",
                field="format",
                code=ErrorCode.BAD_VALUE,
            )
        reader = self._dataset.reader
        return formats[format](reader.captions(reader.list_files()))

    def read(self, filename: str) -> TableView:
        """Return a table in the data set."""
        path = self._table_path(self._dataset.reader.list_files(), filename)
        data = caption_tables.content_of_table(path)
        table = caption_tables.look_at_table(path)
        return {
            "filename": filename,
            "text": decode(data),
            "version": digest_of_bytes(data),
            "reason": table.reason,
            "lines": first_bad_lines(table.lines),
        }

    def replace(self, filename: str, data: bytes, *, version: str | None = None) -> EditResult:
        """Replace a table, as one step; the old one goes into the trash folder.

        Raises `Refused` for a new table with bad lines, and when the old one is not in this
        version any more.
        """
        dataset = self._dataset
        with dataset.lock:
            listing = dataset.reader.list_files()
            path = self._table_path(listing, filename)
            if version is not None and version != _version_of(path):
                raise Refused(
                    f"{filename} was changed meanwhile by another page or program.",
                    field="version",
                    code=ErrorCode.CHANGED_MEANWHILE,
                )
            table = caption_tables.parse_table(path.name, data)
            if table.problems:
                first = table.problems[0]
                raise Refused(
                    f"Line {first.line}: {first.message}",
                    field="file",
                    code=ErrorCode.UNREADABLE_TABLE,
                    details={"lines": first_bad_lines(table.problems)},
                )
            before = dataset.files.trash_name_of(filename)
            after = dataset.files.stage(filename, data)
            return dataset.run_step(
                f"Replace {path.name}", [Change(filename, before, after)], listing
            )

    def move_to_trash(self, filename: str) -> EditResult:
        """Move a table into the trash folder."""
        dataset = self._dataset
        with dataset.lock:
            listing = dataset.reader.list_files()
            path = self._table_path(listing, filename)
            change = Change(filename, dataset.files.trash_name_of(filename), None)
            return dataset.run_step(f"Delete {path.name}", [change], listing)

    def _table_path(self, listing: Listing, filename: str) -> Path:
        folder = self._dataset.folder
        if (
            filename not in listing.files
            or not is_table(filename)
            or not is_inside(folder / filename, folder)
        ):
            raise Refused(
                f"There is no caption table {filename[:200]!r} in this data set.",
                field="filename",
                code=ErrorCode.NOT_FOUND,
            )
        return folder / filename

    def _drop_rivals(self, rows: Rows) -> list[caption_tables.LineProblem]:
        """Take out rows that give another caption to a caption file than an earlier row did."""
        reader = self._dataset.reader
        versions = reader.versions(reader.list_files())
        first: Rows = {}
        rivals: Rows = {}
        for filename, row in rows.items():
            path = versions[filename].path if filename in versions else filename
            if first.setdefault(path, row).caption != row.caption:
                rivals[filename] = row
        return _drop(
            rows,
            rivals,
            "{} shares its caption file with another picture, whose line counts.",
        )


def _imported_captions(
    changed: Rows, captions: Mapping[str, str], versions: Mapping[str, str]
) -> list[ImportedCaption]:
    return [
        {
            "line": row.line,
            "filename": filename,
            "before": captions[filename],
            "after": row.caption,
            "version": versions.get(filename, ""),
        }
        for filename, row in changed.items()
    ]


def _in_order(problems: list[caption_tables.LineProblem]) -> list[BadLine]:
    by_line = sorted(problems, key=lambda problem: problem.line)
    return [bad_line(problem) for problem in by_line]


def _drop_empty(rows: Rows, captions: Mapping[str, str]) -> list[caption_tables.LineProblem]:
    """Take out rows that would empty a caption."""
    empty = {
        filename: row for filename, row in rows.items() if not row.caption and captions[filename]
    }
    return _drop(rows, empty, "the caption of {} is empty; the one that is there stays.")


def _drop(rows: Rows, dropped: Rows, message: str) -> list[caption_tables.LineProblem]:
    for filename in dropped:
        del rows[filename]
    return [
        caption_tables.LineProblem(row.line, message.format(row.filename))
        for row in dropped.values()
    ]


def _version_of(table: Path) -> str:
    return digest_of_bytes(caption_tables.content_of_table(table))
