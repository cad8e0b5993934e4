"""Tables of captions: metadata.csv (`filename,prompt`) and metadata.jsonl (`file_name,text`), read
line by line and written; and the .json of kohya's finetuning scripts, read.

Whatever is wrong with a line is said with its number, and costs that line only.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath

import pandas

from ..base.errors import ErrorCode, Refused
from ..base.json_types import JsonObject, JsonValue
from ..base.text import LEGACY_ENCODINGS, RARER_ENCODINGS, decode, guess_encoding
from .captions import LARGEST_CAPTION_BYTES, can_be_caption, plain_lines, split_tags

log = logging.getLogger(__name__)
LARGEST_TABLE_BYTES, MOST_LINES = 20_000_000, 200_000
KOHYA_TABLES = (
    "metadata.json",
    "meta_lat.json",
    "meta_clean.json",
    "meta_cap_dd.json",
    "meta_cap.json",
)  # the last step's first
TABLE_NAMES = ("metadata.csv", "metadata.jsonl", *KOHYA_TABLES)
COLUMNS = (
    ("filename", "prompt"),
    ("file_name", "text"),
    ("image_path", "caption"),
)  # lora-scripts', Hugging Face datasets', and kohya's
DELIMITERS = ",;\t"  # the latter two are what spreadsheets write in some countries


@dataclasses.dataclass(frozen=True)
class Row:
    """A caption, the picture as the table names it, and the line (from 1) where it begins."""

    line: int
    filename: str
    caption: str


@dataclasses.dataclass(frozen=True)
class LineProblem:
    """A line that cannot be used, and why."""

    line: int
    message: str


@dataclasses.dataclass(frozen=True)
class Table:
    """What a file holds: the encoding it was read in, its rows, and the lines that could not be
    used.
    """

    encoding: str
    rows: list[Row]
    problems: list[LineProblem]


def parse_table(name: str, data: bytes, *, encoding: str | None = None) -> Table:
    """Read a table from a file's name and content; raises `Refused` when it is none at all, or not
    in the encoding given.
    """
    text = decode(data, encoding)
    if name.lower().endswith(".json") and (kohya := _read_kohya(text)) is not None:
        return Table(encoding or guess_encoding(data), *kohya)
    if text.count("\n") > MOST_LINES:
        raise _unreadable(f"{name} has more than {MOST_LINES:,} lines. Split it.")
    read = _read_json_lines if name.lower().endswith((".jsonl", ".json")) else _read_csv
    rows, problems = read(name, text)
    return Table(encoding or guess_encoding(data), rows, problems)


def match_rows(table: Table, filenames: Iterable[str]) -> tuple[dict[str, Row], list[LineProblem]]:
    """Find the picture that each row means: rows by picture, and the lines that cannot be used.

    Those name no picture, or one that has another caption already. A name may be a path of another
    machine: what counts is its end. `..` in it is refused.
    """
    pictures = _Pictures(filenames)
    found: dict[str, Row] = {}
    problems: list[LineProblem] = []
    for row in table.rows:
        try:
            filename = pictures.find(row.filename)
        except Refused as error:
            problems.append(LineProblem(row.line, error.message))
            continue
        _keep_first(found, filename, row, problems)
    return found, problems


def _keep_first(
    found: dict[str, Row], filename: str, row: Row, problems: list[LineProblem]
) -> None:
    """Add a picture's row to those that were found, unless it has one; note one that differs."""
    first = found.setdefault(filename, row)
    if first.caption != row.caption:
        counts = f"{row.filename} has another caption already in line {first.line}, which counts."
        problems.append(LineProblem(row.line, counts))


def fitting_encoding(name: str, data: bytes, filenames: Iterable[str]) -> str:
    """Return the encoding of a table; of several possible, that in which it names most pictures."""
    likeliest, filenames = guess_encoding(data), list(filenames)
    if likeliest not in (*LEGACY_ENCODINGS, "latin-1"):
        return likeliest
    named: dict[str, int] = {}
    for encoding in (likeliest, *LEGACY_ENCODINGS, *RARER_ENCODINGS):
        with contextlib.suppress(Refused):
            rows, _ = match_rows(parse_table(name, data, encoding=encoding), filenames)
            named.setdefault(encoding, len(rows))
    return max(named, key=lambda encoding: named[encoding]) if named else likeliest


@dataclasses.dataclass(frozen=True)
class LaidTable:
    """The table that lies in a folder, as far as it can be read: captions by file name, and what is
    wrong with it.

    `reason` is empty where all is well; `lines` are those that cannot be used.
    """

    captions: dict[str, str]
    reason: str = ""
    lines: tuple[LineProblem, ...] = ()


def read_table(path: Path) -> dict[str, str]:
    """Read a table to captions by file name, folders dropped; raises `Refused` naming the first
    line that is wrong. A second caption of a picture is no reason: the first counts.
    """
    table = _parsed(path)
    if table.problems:
        raise _unreadable(_reason_of(path.name, table.problems))
    captions, ignored = _by_name(table)
    if ignored:
        _log_once(_reason_of(path.name, ignored))
    return captions


@functools.lru_cache(maxsize=256)
def _log_once(sentence: str) -> None:
    log.warning(sentence)


def look_at_table(path: Path) -> LaidTable:
    """Read what of a table can be read; what cannot is said and keeps nobody from the rest."""
    try:
        table = _parsed(path)
    except Refused as error:
        return LaidTable({}, "" if _may_be_anothers(path) else error.message)
    captions, ignored = _by_name(table)
    problems = sorted([*table.problems, *ignored], key=lambda problem: problem.line)
    return LaidTable(captions, _reason_of(path.name, problems), tuple(problems))


def content_of_table(path: Path) -> bytes:
    """Return a table's content; raises `Refused` for what cannot be read, or is too large."""
    try:
        return _content(path)
    except OSError as error:
        raise _unreadable(f"The caption table {path} cannot be read: {error.strerror}.") from error


def _parsed(path: Path) -> Table:
    return parse_table(path.name, content_of_table(path))


def _reason_of(name: str, problems: Sequence[LineProblem]) -> str:
    return (
        f"Line {problems[0].line} of the caption table {name}: {problems[0].message}"
        if problems
        else ""
    )


def _by_name(table: Table) -> tuple[dict[str, str], list[LineProblem]]:
    """Return captions by file name, folders dropped, and the lines that name a picture once more
    with another caption.
    """
    found: dict[str, Row] = {}
    problems: list[LineProblem] = []
    for row in table.rows:
        _keep_first(found, PureWindowsPath(row.filename).name, row, problems)
    return {name: row.caption for name, row in found.items()}, problems


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a folder, or a device that never ends
        raise _unreadable(f"The caption table {path} is not a file.")
    if path.stat().st_size > LARGEST_TABLE_BYTES:
        raise _unreadable(
            f"The caption table {path} is larger than {LARGEST_TABLE_BYTES // 1_000_000} MB."
        )
    return path.read_bytes()


def find_table(folder: Path, metadata_path: str = "") -> dict[str, str]:
    """Read the table a user names, or the one that lies in the folder, or none."""
    if metadata_path:
        return read_table(Path(metadata_path))
    path = next((folder / name for name in TABLE_NAMES if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        return read_table(path)
    except Refused:
        if _may_be_anothers(path):
            return {}
        raise


def _may_be_anothers(path: Path) -> bool:
    """Tell whether a file that is no table may be another program's, of a name that many use."""
    return path.name in KOHYA_TABLES


def format_csv(captions: Mapping[str, str]) -> bytes:
    """Return a metadata.csv, UTF-8, of captions by file name."""
    frame = pandas.DataFrame({"filename": list(captions.keys()), "prompt": list(captions.values())})
    return frame.to_csv(index=False, lineterminator="\n").encode("utf-8")


def format_jsonl(captions: Mapping[str, str]) -> bytes:
    """Return a metadata.jsonl, UTF-8, of captions by file name."""
    return "".join(
        json.dumps({"file_name": name, "text": text}, ensure_ascii=False) + "\n"
        for name, text in captions.items()
    ).encode("utf-8")


# --- Reading --------------------------------------------------------------------------------------


def _read_csv(name: str, text: str) -> tuple[list[Row], list[LineProblem]]:
    header, delimiter = find_header(text)
    if delimiter is None:
        raise _unreadable(
            f"The caption table {name} has the columns"
            f" {', '.join(_split(header, ',')[:8])[:200] or '(none)'}; expected filename and"
            " prompt."
        )
    reader = csv.reader(
        io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter, strict=True
    )
    skipped = text[: len(text) - len(text.lstrip("\r\n"))].count("\n")
    rows: list[Row] = []
    problems: list[LineProblem] = []
    columns, width, line = None, 0, 1 + skipped
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return rows, problems
        except csv.Error as error:
            problems.append(
                LineProblem(
                    line,
                    f"a quotation mark is not closed, or stands in the wrong place ({error});"
                    " nothing from here on was read.",
                )
            )
            return rows, problems
        if columns is None:
            columns, width = find_columns(fields), len(fields)
        elif fields:
            _take(fields, columns, width, line, rows, problems)
        line = 1 + skipped + reader.line_num


def _json(text: str) -> JsonValue:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_kohya(text: str) -> tuple[list[Row], list[LineProblem]] | None:
    """Read `{"picture": {"caption": "…", "tags": "…"}}`, pictures by path or without their ending;
    None when it is something else. Lines are counted as entries, from 1.
    """
    found = _json(text)
    if not isinstance(found, dict) or not any(
        isinstance(entry, dict) and {"caption", "tags"} & entry.keys() for entry in found.values()
    ):
        return None
    rows: list[Row] = []
    problems: list[LineProblem] = []
    for number, (picture, entry) in enumerate(found.items(), start=1):
        if not isinstance(entry, dict):
            problems.append(LineProblem(number, "is not a JSON object with caption and tags."))
            continue
        _add(number, picture, _kohyas_caption(entry), rows, problems)
    return rows, problems


def _kohyas_caption(entry: JsonObject) -> str | None:
    """As sd-scripts puts them together: tags, on one line, behind each line of the caption."""
    caption, tags = entry.get("caption"), entry.get("tags")
    if not isinstance(caption, (str, type(None))) or not isinstance(tags, (str, type(None))):
        return None
    listed = ", ".join(split_tags(tags or ""))
    lines = plain_lines(caption or "").split("\n")
    return "\n".join(", ".join(part for part in (line, listed) if part) for line in lines)


def _take(
    fields: list[str],
    columns: tuple[int, int],
    width: int,
    line: int,
    rows: list[Row],
    problems: list[LineProblem],
) -> None:
    if len(fields) != width:
        advice = (
            "put captions with commas into double quotes"
            if len(fields) > width
            else "a field is missing"
        )
        problems.append(
            LineProblem(line, f"has {len(fields)} fields, but the header has {width}; {advice}.")
        )
        return
    _add(line, fields[columns[0]], fields[columns[1]], rows, problems)


def _read_json_lines(name: str, text: str) -> tuple[list[Row], list[LineProblem]]:
    rows: list[Row] = []
    problems: list[LineProblem] = []
    for line, source in enumerate(
        text.split("\n"), start=1
    ):  # not splitlines(): U+2028 may stand in a caption
        if not source.strip():
            continue
        try:
            found = json.loads(source)
            columns = find_columns(list(found)) if isinstance(found, dict) else None
        except (ValueError, RecursionError) as error:
            problems.append(LineProblem(line, f"is not a JSON object: {error}."))
            continue
        if columns is None:
            problems.append(LineProblem(line, "is not a JSON object with file_name and text."))
            continue
        values = list(found.values())
        _add(
            line,
            values[columns[0]],
            (
                _kohyas_caption(found)
                if "tags" in found and "image_path" in found
                else values[columns[1]]
            ),
            rows,
            problems,
        )
    if not rows and problems:
        raise _unreadable(
            f"{name} is not a caption table: line {problems[0].line} {problems[0].message}"
        )
    return rows, problems


def _add(
    line: int, filename: object, caption: object, rows: list[Row], problems: list[LineProblem]
) -> None:
    if not isinstance(filename, str) or not isinstance(caption, str):
        problems.append(LineProblem(line, "the file name and the caption must be text."))
    elif not filename.strip():
        problems.append(LineProblem(line, "the file name is empty."))
    elif not can_be_caption(caption):
        problems.append(
            LineProblem(
                line, f"the caption is not text of at most {LARGEST_CAPTION_BYTES // 1000} kB."
            )
        )
    else:
        rows.append(Row(line, filename.strip(), plain_lines(caption)))


def find_header(text: str) -> tuple[str, str | None]:
    """Return a CSV's first line with text, and the delimiter at which it falls into the two
    columns; None when at none.
    """
    header = next((line for line in text.splitlines() if line.strip()), "")
    return header, next((each for each in DELIMITERS if find_columns(_split(header, each))), None)


def find_columns(names: Sequence[object]) -> tuple[int, int] | None:
    """Return where the file name and the caption stand."""
    plain = [name.strip().lower() if isinstance(name, str) else "" for name in names]
    return next(
        (
            (plain.index(first), plain.index(second))
            for first, second in COLUMNS
            if first in plain and second in plain
        ),
        None,
    )


def _split(header: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:  # it has a NUL: no table at all
        return []


def _unreadable(message: str) -> Refused:
    return Refused(message, field="metadata_path", code=ErrorCode.UNREADABLE_TABLE)


class _Pictures:
    """Finds the picture that a table's path means: the longest common end of both paths decides."""

    def __init__(self, filenames: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        filenames = list(filenames)
        self._exact = set(filenames)
        for filename in filenames:
            name = PureWindowsPath(filename).name.casefold()
            for key in {name, PureWindowsPath(name).stem}:  # kohya's tables leave the ending out
                self._by_name.setdefault(key, []).append(filename)

    def find(self, written: str) -> str:
        """Return the picture; raises `Refused` when there is none, or more than one."""
        path = PureWindowsPath(written)
        if ".." in path.parts:
            raise Refused(f"{written[:100]} leads out of the data set by `..`.")
        if written in self._exact:
            return written
        fitting = self._by_name.get(path.name.casefold(), [])
        if len(fitting) > 1:
            ends = {
                filename: _common_end(PureWindowsPath(filename).parts, path.parts)
                for filename in fitting
            }
            fitting = [
                filename for filename, length in ends.items() if length == max(ends.values())
            ]
        if not fitting:
            raise Refused(f"there is no picture {written[:100]} here.")
        if len(fitting) > 1:
            raise Refused(f"{written[:100]} may mean {' or '.join(fitting[:3])}.")
        return fitting[0]


def _common_end(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one.casefold() != other.casefold():
            break
        count += 1
    return count
