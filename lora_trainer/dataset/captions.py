"""Captions of pictures: the sidecar .txt files, which count more than tables, trigger words, tags.

Reads files in any usual encoding. A caption is text of one or more lines; what several lines mean
is a setting of the run. Tables are in caption_tables, editing in the editor.
"""

import dataclasses
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard

from ..base.files import read_small_file
from ..base.text import decode, is_plain_text

LARGEST_CAPTION_BYTES = 100_000
LARGEST_CAPTION_FILE_BYTES = 2 * LARGEST_CAPTION_BYTES  # it may be in UTF-16
CAPTION_ENDINGS = (".txt", ".caption")  # ours, and kohya's default
_LORA = re.compile(
    r"<(?:lora|lyco):[^<>\n]*>|(?<![\w<])(?:lora|lyco):[^:,<>\n]+:-?[\d.]+(?!\w)", re.IGNORECASE
)


def sidecar(picture: Path, *, preferred: str = CAPTION_ENDINGS[0]) -> Path:
    """Return the path of a picture's caption file, or where a new one goes.

    Of several, it is the one with the preferred ending.
    """
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
    """A picture's caption (None: it has none).

    `other` is the name of its other caption file, where that says something else.
    """

    text: str | None
    other: str = ""


def find_caption(
    picture: Path, table: dict[str, str] | None = None, *, preferred: str = CAPTION_ENDINGS[0]
) -> Caption:
    """Return a picture's caption: its caption file's, else the table's. Raises OSError."""
    paths = [path for path in caption_paths(picture, preferred=preferred) if _is_file(path)]
    others = paths or [sidecar(picture)]
    while others:
        file, *others = others
        content = read_small_file(file, most_bytes=LARGEST_CAPTION_FILE_BYTES)
        if content is None:  # a link that leads out of the folder
            continue
        text = text_of(content)
        rivals = [path.name for path in others if _text_in(path) not in (None, text)]
        return Caption(text, rivals[0] if rivals else "")
    return Caption(in_table(picture, table or {}))


def _text_in(path: Path) -> str | None:
    """Return the text of a caption file; None if it is not there, "" if it cannot be read."""
    try:
        content = read_small_file(path, most_bytes=LARGEST_CAPTION_FILE_BYTES)
    except OSError:
        return ""
    return None if content is None else text_of(content)


def in_table(picture: Path, table: dict[str, str]) -> str | None:
    """Return a picture's caption in a table, whose names may lack the ending."""
    return table.get(picture.name, table.get(picture.stem))


def read_caption(picture: Path, table: dict[str, str] | None = None) -> str | None:
    """Return the caption of a picture: its caption file's, else the table's, else None."""
    return find_caption(picture, table).text


def text_of(data: bytes) -> str:
    """Decode a caption file's content: its lines, without empty ones and surplus blanks."""
    return plain_lines(decode(data))


def plain_lines(text: str) -> str:
    """Drop empty lines and surplus blanks of a text."""
    lines = (" ".join(line.split()) for line in re.split(r"[\r\n]+", text))
    return "\n".join(line for line in lines if line)


def lines_of(caption: str, use: str) -> list[str]:
    """Return the captions that are meant by one of several lines; there is at least one.

    `use`: all lines as one ("join"), the "first" line, or each line ("alternatives").
    """
    lines = caption.split("\n")
    return {"join": [" ".join(lines)], "first": lines[:1], "alternatives": lines}[use]


def to_bytes(caption: str) -> bytes:
    """Return a caption file's content: UTF-8, a line break at its end; empty for no caption."""
    text = plain_lines(caption)
    return (text + "\n").encode("utf-8") if text else b""


def can_be_caption(text: object) -> TypeGuard[str]:
    """Tell whether a value is text that can be stored as a caption."""
    return (
        isinstance(text, str)
        and is_plain_text(text)
        and len(text.encode("utf-8")) <= LARGEST_CAPTION_BYTES
    )


def with_trigger(caption: str, trigger_word: str, *, certain: Callable[[str], str] = str) -> str:
    """Put the trigger word in front of each of a caption's lines that does not contain it.

    `certain` returns the parts of a line that are there whatever is drawn; only those are searched.
    """
    if not trigger_word:
        return caption
    lines = []
    for line in caption.split("\n"):
        if contains_word(certain(line), trigger_word):
            lines.append(line)
        else:
            lines.append(f"{trigger_word}, {line}" if line else trigger_word)
    return "\n".join(lines)


def contains_word(caption: str, word: str) -> bool:
    """Tell whether a caption contains a word (or several), not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption) is not None


def split_tags(caption: str) -> list[str]:
    """Split a caption at its commas and lines; a sentence is one tag."""
    return [tag.strip() for tag in re.split(r"[,\n]", caption) if tag.strip()]


def loras_in(text: str) -> list[str]:
    """Return what calls a LoRA as in a prompt: `<lora:name:0.8>`, and the same without brackets."""
    return [found.strip() for found in _LORA.findall(text)]
