"""Captions of pictures: sidecar .txt files (the truth), trigger words, tags. Tables are in tables.py, editing in editor.py.

Reads what people bring in any usual encoding; writes UTF-8, atomically.
"""
import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .config import is_plain_text
from .encodings import decode

LARGEST_CAPTION_BYTES = 100_000


def sidecar(picture: Path) -> Path:
    """Return the path of a picture's caption file."""
    return picture.with_suffix(".txt")


def read_caption(picture: Path, table: dict[str, str] | None = None) -> str | None:
    """Return the caption of a picture on one line: its .txt's, else the table's (by file name), else None."""
    content = content_of(sidecar(picture))
    return (table or {}).get(picture.name) if content is None else one_line(content)


def content_of(path: Path) -> bytes | None:
    """Return a file's content; None when there is no such file, or only a link that leads out of its folder."""
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
            return None
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def one_line(data: bytes) -> str:
    """Decode a caption file's content and join its lines."""
    return " ".join(decode(data).split())


def to_bytes(caption: str) -> bytes:
    """Return what a caption file holds for a caption: UTF-8, one line, a line break at its end; nothing for an empty one."""
    text = " ".join(caption.split())
    return (text + "\n").encode("utf-8") if text else b""


def can_be_caption(text: Any) -> bool:
    """Tell whether a value is text that can be stored as a caption."""
    return isinstance(text, str) and is_plain_text(text) and len(text.encode("utf-8")) <= LARGEST_CAPTION_BYTES


def with_trigger(caption: str, trigger_word: str) -> str:
    """Put the trigger word in front of a caption that does not begin with, or contain, it as a tag."""
    if not trigger_word or contains_word(caption, trigger_word):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def contains_word(caption: str, word: str) -> bool:
    """Tell whether a word, or several, stands in a caption as such, not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption) is not None


def split_tags(caption: str) -> list[str]:
    """Split a caption at its commas; a sentence is one tag."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def write_atomically(path: Path, data: bytes, *, check: bool = False) -> None:
    """Write a file so that no reader, and no power cut, ever sees a part of it: temporary file in the same folder, flush, replace.

    A file that was there keeps its mode; a new one gets the user's usual mode. With `check` what was written is read back first; raises OSError
    when it is not the same, as for everything that a disk refuses.
    """
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check and temporary.read_bytes() != data:
            raise OSError("what was written does not read back; the disk may be failing")
        if path.exists():
            os.chmod(temporary, path.stat().st_mode)
        replace_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folders: Iterable[Path], *, older_than_seconds: float = 0.0) -> None:
    """Remove temporary files that a killed process left in these folders."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
                with contextlib.suppress(OSError):
                    if not older_than_seconds or time.time() - path.stat().st_mtime > older_than_seconds:
                        path.unlink(missing_ok=True)


def replace_file(source: Path, target: Path, attempts: int = 5) -> None:
    """`os.replace`, several times on Windows, which refuses while another program has the target open."""
    for attempt in range(attempts):
        try:
            return os.replace(source, target)
        except PermissionError:
            if os.name != "nt" or attempt == attempts - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
