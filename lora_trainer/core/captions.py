"""Captions of pictures: sidecar .txt files (the truth), and tables (metadata.csv, metadata.jsonl) where a picture has none.

Reads what people bring: UTF-8 with or without BOM, UTF-16 with BOM, and the legacy encodings of Windows; writes UTF-8, atomically.
"""
import json
import os
import re
import time
import uuid
from pathlib import Path, PureWindowsPath

import pandas

from .errors import Refused

LEGACY_ENCODINGS = ("gb18030", "cp932", "cp1252", "latin-1")
TABLE_NAMES = ("metadata.csv", "metadata.jsonl")


def decode(data: bytes) -> str:
    """Decode a text file of unknown encoding; raises UnicodeDecodeError never, since Latin-1 takes any byte."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    for encoding in ("utf-8-sig", *LEGACY_ENCODINGS):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes everything")


def read_caption(picture: Path, table: dict[str, str] | None = None) -> str | None:
    """Return the caption of a picture on one line: its .txt's, else the table's (by file name), else None."""
    sidecar = picture.with_suffix(".txt")
    if sidecar.is_file():
        return " ".join(decode(sidecar.read_bytes()).split())
    return (table or {}).get(picture.name)


def write_caption(picture: Path, caption: str) -> None:
    """Save a caption beside its picture; a reader sees the old text or the new one, never a part."""
    write_atomically(picture.with_suffix(".txt"), (caption.strip() + "\n").encode("utf-8"))


def read_table(path: Path) -> dict[str, str]:
    """Read `filename,prompt` (CSV) or `file_name,text` (JSON lines) to captions by file name; folders in names are dropped.

    Raises `Refused` naming the line, or the columns found and expected.
    """
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise Refused(f"The caption table {path} cannot be read: {error.strerror}.", field="metadata_path", code="unreadable_table") from error
    rows = _read_json_lines(path, text) if path.suffix.lower() in (".jsonl", ".json") else _read_csv(path, text)
    return {PureWindowsPath(name).name: " ".join(str(caption).split()) for name, caption in rows}


def find_table(folder: Path, metadata_path: str = "") -> dict[str, str]:
    """Read the table a user names, or the one that lies in the folder, or none."""
    if metadata_path:
        return read_table(Path(metadata_path))
    for name in TABLE_NAMES:
        if (folder / name).is_file():
            return read_table(folder / name)
    return {}


def with_trigger(caption: str, trigger_word: str) -> str:
    """Put the trigger word in front of a caption that does not begin with, or contain, it as a tag."""
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def split_tags(caption: str) -> list[str]:
    """Split a caption at its commas; a sentence is one tag."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that no reader, and no power cut, ever sees a part of it: temporary file in the same folder, flush, replace.

    A file that was there keeps its mode; a new one gets the user's usual mode.
    """
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode)
        _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _replace(source: Path, target: Path, attempts: int = 5) -> None:
    """`os.replace`, several times on Windows, which refuses while another program has the target open."""
    for attempt in range(attempts):
        try:
            return os.replace(source, target)
        except PermissionError:
            if os.name != "nt" or attempt == attempts - 1:
                raise
            time.sleep(0.2 * (attempt + 1))


def _read_csv(path: Path, text: str) -> list[tuple[str, str]]:
    import io
    try:
        frame = pandas.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (ValueError, pandas.errors.ParserError) as error:
        raise Refused(f"The caption table {path} is not a readable CSV: {error}", field="metadata_path", code="unreadable_table") from error
    name, caption = _columns(path, list(frame.columns), (("filename", "prompt"), ("file_name", "text")))
    if not isinstance(frame.index, pandas.RangeIndex):                             # pandas took surplus fields for row names
        raise Refused(f"The caption table {path} has lines with more fields than its header; put captions with commas in double quotes.",
                      field="metadata_path", code="unreadable_table")
    return list(zip(frame[name], frame[caption]))


def _read_json_lines(path: Path, text: str) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = _columns(path, list(row), (("file_name", "text"), ("filename", "prompt")))
            if not isinstance(row[name], str) or not isinstance(row[caption], str):
                raise TypeError(f"{name} and {caption} must be text")
        except (ValueError, TypeError) as error:
            raise Refused(f"Line {number} of the caption table {path} is not a JSON object: {error}", field="metadata_path", code="unreadable_table") from error
        rows.append((row[name], row[caption]))
    return rows


def _columns(path: Path, found: list[str], pairs: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    for pair in pairs:
        if set(pair) <= set(found):
            return pair
    raise Refused(f"The caption table {path} has the columns {', '.join(map(str, found[:8]))}; expected {pairs[0][0]} and {pairs[0][1]}.",
                  field="metadata_path", code="unreadable_table")
