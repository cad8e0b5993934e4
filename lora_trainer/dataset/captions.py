"""Captions of pictures: sidecar .txt files (the truth), trigger words, tags. Tables are in
tables.py, editing in editor.py.

Reads what people bring in any usual encoding; writes UTF-8, atomically. A caption is text of one or
more lines; what several lines mean is a setting of the run.
"""

import dataclasses
import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..base.paths import is_inside
from ..base.text import decode
from ..settings.config import is_plain_text

LARGEST_CAPTION_BYTES = 100_000
LARGEST_CAPTION_FILE_BYTES = 2 * LARGEST_CAPTION_BYTES  # it may be in UTF-16
LINE_USES = ("join", "first", "alternatives")  # what several lines may mean
CAPTION_ENDINGS = (".txt", ".caption")  # ours, and kohya's default
NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_LORA = re.compile(
    r"<(?:lora|lyco):[^<>\n]*>|(?<![\w<])(?:lora|lyco):[^:,<>\n]+:-?[\d.]+(?!\w)", re.IGNORECASE
)


def sidecar(picture: Path, *, preferred: str = CAPTION_ENDINGS[0]) -> Path:
    """Return the path of a picture's caption file: the preferred one if it is there, else the other
    one if that is, else where a new one goes."""
    files = caption_paths(picture, preferred=preferred)
    return next((path for path in files if _is_file(path)), picture.with_suffix(CAPTION_ENDINGS[0]))


def caption_paths(picture: Path, *, preferred: str = CAPTION_ENDINGS[0]) -> list[Path]:
    """Return the paths at which a picture's caption may lie, the preferred one first."""
    endings = sorted(CAPTION_ENDINGS, key=lambda ending: ending != preferred)
    return [picture.with_suffix(ending) for ending in endings]


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


@dataclasses.dataclass(frozen=True)
class Caption:
    """A picture's caption (None: it has none), and the name of its other caption file where that
    says something else."""

    text: str | None
    other: str = ""


def find_caption(
    picture: Path, table: dict[str, str] | None = None, *, preferred: str = CAPTION_ENDINGS[0]
) -> Caption:
    """Return a picture's caption: its caption file's, else the table's. Raises OSError."""
    file, *others = [
        path for path in caption_paths(picture, preferred=preferred) if _is_file(path)
    ] or [sidecar(picture)]
    content = content_of(file)
    if content is None:
        return Caption(in_table(picture, table or {}))
    text = text_of(content)
    return Caption(
        text, next((path.name for path in others if _says(path) not in (None, text)), "")
    )


def _says(path: Path) -> str | None:
    try:
        content = content_of(path)
    except OSError:
        return ""
    return None if content is None else text_of(content)


def in_table(picture: Path, table: dict[str, str]) -> str | None:
    """Return a picture's caption in a table, whose names may lack the ending."""
    return table.get(picture.name, table.get(picture.stem))


def read_caption(picture: Path, table: dict[str, str] | None = None) -> str | None:
    """Return the caption of a picture: its caption file's, else the table's, else None."""
    return find_caption(picture, table).text


def content_of(path: Path, *, most_bytes: int = LARGEST_CAPTION_FILE_BYTES) -> bytes | None:
    """Return a file's content; None when there is no such file, only a link that leads out of its
    folder, or something that is no file (a pipe, a device). Raises OSError (EFBIG) for a larger
    one.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        if path.is_symlink() and not is_inside(path, path.parent):
            return None
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        if error.errno in NO_SUCH_FILE:
            return None
        raise
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes // 1000:,} kB", str(path))
    return data


def text_of(data: bytes) -> str:
    """Decode a caption file's content: its lines, without empty ones and surplus blanks."""
    return plain_lines(decode(data))


def plain_lines(text: str) -> str:
    """Drop empty lines and surplus blanks of a text."""
    lines = (" ".join(line.split()) for line in re.split(r"[\r\n]+", text))
    return "\n".join(line for line in lines if line)


def lines_of(caption: str, use: str) -> list[str]:
    """Return the captions that are meant by one of several lines: all together as one ("join"), its
    "first" line, or each line ("alternatives"). Never empty."""
    lines = caption.split("\n")
    return {"join": [" ".join(lines)], "first": lines[:1], "alternatives": lines}[use]


def to_bytes(caption: str) -> bytes:
    """Return what a caption file holds for a caption: UTF-8, a line break at its end; nothing for
    an empty one.
    """
    text = plain_lines(caption)
    return (text + "\n").encode("utf-8") if text else b""


def can_be_caption(text: Any) -> bool:
    """Tell whether a value is text that can be stored as a caption."""
    return (
        isinstance(text, str)
        and is_plain_text(text)
        and len(text.encode("utf-8")) <= LARGEST_CAPTION_BYTES
    )


def with_trigger(caption: str, trigger_word: str, *, certain: Callable[[str], str] = str) -> str:
    """Put the trigger word in front of each of a caption's lines that does not contain it as a tag.

    `certain` returns what of a line is always shown: there it is looked for.
    """
    if not trigger_word:
        return caption
    return "\n".join(
        (
            line
            if contains_word(certain(line), trigger_word)
            else f"{trigger_word}, {line}"
            if line
            else trigger_word
        )
        for line in caption.split("\n")
    )


def contains_word(caption: str, word: str) -> bool:
    """Tell whether a word, or several, stands in a caption as such, not as a part of a longer
    word.
    """
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption) is not None


def split_tags(caption: str) -> list[str]:
    """Split a caption at its commas and lines; a sentence is one tag."""
    return [tag.strip() for tag in re.split(r"[,\n]", caption) if tag.strip()]


def loras_in(text: str) -> list[str]:
    """Return what calls a LoRA as in a prompt: `<lora:name:0.8>`, and the same without brackets."""
    return [found.strip() for found in _LORA.findall(text)]
