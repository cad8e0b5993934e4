"""A table of captions on disk that a person may edit while ours come in: theirs wins, and nothing
of theirs is lost.

Other columns, other rows and the order of both stay; a row of ours is changed in its place, or
added at the end. What cannot be written there, because the file became unreadable or another
program holds it, goes to a table beside it.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas

from ..base.errors import Refused
from ..base.files import read_small_file, write_atomically
from ..base.text import decode
from ..dataset.caption_tables import (
    COLUMNS,
    LARGEST_TABLE_BYTES,
    find_columns,
    find_header,
    format_csv,
    format_jsonl,
    match_rows,
    parse_table,
)

FORMATS = {".csv": format_csv, ".jsonl": format_jsonl}
NEW_CSV = "filename,prompt\n"


@dataclasses.dataclass(frozen=True)
class _Content:
    """What the file holds: its text, captions by picture, and the number of each picture's row
    (from 0).
    """

    text: str = ""
    encoding: str = "utf-8"
    captions: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    count: int = 0


class TableFile:
    """The table and the captions that are to get into it; `filenames` are the pictures' as they are
    written into new rows.
    """

    def __init__(self, path: Path, filenames: Iterable[str]) -> None:
        """Raises `Refused` (field "output") for a table that cannot be read whole, or is of another
        kind.
        """
        if path.suffix.lower() not in FORMATS:
            raise Refused(
                f"The output {path} ends neither with .csv nor with .jsonl. Without --output each"
                " picture gets a .txt.",
                field="output",
            )
        self._path = path
        self._filenames = list(filenames)
        self._known = self._read() or _Content()
        self._captions: dict[str, str] = {}  # everything given to `put`
        self._unsaved: set[str] = set()
        # Pictures whose row a person wrote or removed meanwhile.
        self.edited_by_user: set[str] = set()
        self.written_to = path
        self.failure = ""  # why the captions are not in the table but beside it

    @property
    def captions(self) -> Mapping[str, str]:
        """Captions by picture, as the table was when it was last read or written."""
        return self._known.captions

    @property
    def unsaved(self) -> int:
        return len(self._unsaved)

    def put(self, captions: Mapping[str, str]) -> None:
        self._captions.update(captions)
        self._unsaved.update(captions)

    def save(self) -> None:
        """Write what was put since the last time. Raises `Refused` when it can be written neither
        here nor beside it.
        """
        if not self._unsaved:
            return
        if not self.failure:
            try:
                self._merge()
            except (OSError, Refused) as error:
                self.failure = (
                    error.message
                    if isinstance(error, Refused)
                    else f"{self._path} cannot be written: {error.strerror or error}."
                )
                self.written_to = self._beside()
        if self.failure:
            self._write(self.written_to, FORMATS[self._path.suffix.lower()](self._captions))
        self._unsaved = set()

    def _merge(self) -> None:
        now = self._read()
        if now is None:  # new, or taken away meanwhile
            now = self._known = _Content()
            self._unsaved = set(self._captions)
        touched = {
            name
            for name in self._unsaved
            if now.captions.get(name) != self._known.captions.get(name)
        }
        unsaved = self._unsaved - touched
        captions = {name: caption for name, caption in self._captions.items() if name in unsaved}
        data = _with_captions(self._path, now, captions)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, data)
        self._known = self._parse(data)
        self.edited_by_user |= touched

    def _beside(self) -> Path:
        names = (
            f"{self._path.stem}-auto{f'-{number}' if number > 1 else ''}{self._path.suffix}"
            for number in range(1, 1000)
        )
        return next(path for path in map(self._path.with_name, names) if not path.exists())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError as error:
            raise Refused(
                f"{self.failure} {path} cannot be written either: {error.strerror or error}.",
                field="output",
            ) from error

    def _read(self) -> _Content | None:
        try:
            data = read_small_file(self._path, most_bytes=LARGEST_TABLE_BYTES)
        except OSError as error:
            raise Refused(
                f"{self._path} cannot be read: {error.strerror}.", field="output"
            ) from error
        return None if data is None else self._parse(data)

    def _parse(self, data: bytes) -> _Content:
        table = parse_table(self._path.name, data)
        if table.problems:
            first = table.problems[0]
            raise Refused(
                f"Line {first.line} of {self._path} cannot be read ({first.message}), and would be"
                " lost. Mend it, or write to another file.",
                field="output",
            )
        found, _ = match_rows(table, self._filenames)
        numbers = {row.line: number for number, row in enumerate(table.rows)}
        return _Content(
            decode(data),
            table.encoding,
            {name: row.caption for name, row in found.items()},
            {name: numbers[row.line] for name, row in found.items()},
            len(table.rows),
        )


def _with_captions(path: Path, content: _Content, captions: Mapping[str, str]) -> bytes:
    """Return the file's content with these captions, in the place of the old ones or at the end;
    UTF-8, with its mark if it had one.
    """
    changed = {
        content.rows[name]: caption for name, caption in captions.items() if name in content.rows
    }
    added = {name: caption for name, caption in captions.items() if name not in content.rows}
    edit: Callable = _edited_csv if path.suffix.lower() == ".csv" else _edited_jsonl
    text = edit(path, content, changed, added)
    return text.encode("utf-8-sig" if content.encoding == "utf-8-sig" else "utf-8")


def _edited_csv(
    path: Path, content: _Content, changed: Mapping[int, str], added: Mapping[str, str]
) -> str:
    text = content.text or NEW_CSV
    header, delimiter = find_header(text)
    frame = _frame(text, delimiter)  # the header is its first row: names may occur twice
    name_column, caption_column = find_columns(list(frame.iloc[0]))
    if len(frame) != content.count + 1:
        raise Refused(
            f"The rows of {path} cannot be told apart. Write to another file.", field="output"
        )
    for number, caption in changed.items():
        frame.iat[number + 1, caption_column] = caption
    new = pandas.DataFrame("", index=range(len(added)), columns=frame.columns, dtype=object)
    new[name_column] = list(added)
    new[caption_column] = list(added.values())
    return pandas.concat([frame, new]).to_csv(
        index=False,
        header=False,
        sep=delimiter,
        lineterminator="\r\n" if f"{header}\r\n" in text else "\n",
    )


def _frame(text: str, delimiter: str) -> pandas.DataFrame:
    return pandas.read_csv(
        io.StringIO(text, newline=""), sep=delimiter, header=None, dtype=object, na_filter=False
    )


def _edited_jsonl(
    path: Path, content: _Content, changed: Mapping[int, str], added: Mapping[str, str]
) -> str:
    lines = [line.rstrip("\r") for line in content.text.split("\n") if line.strip()]
    keys = COLUMNS[1]
    for number, line in enumerate(lines):
        row = json.loads(line)
        names = list(row)
        keys = tuple(names[place] for place in find_columns(names))
        if number in changed:
            lines[number] = json.dumps({**row, keys[1]: changed[number]}, ensure_ascii=False)
    lines += [
        json.dumps({keys[0]: name, keys[1]: caption}, ensure_ascii=False)
        for name, caption in added.items()
    ]
    return "".join(line + "\n" for line in lines)
