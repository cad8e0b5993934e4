"""A job's log.txt: what the package logs in the job's thread, and reading it piece by piece."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

NAME = "log.txt"
MOST_BYTES = 200_000


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Add what the package logs in this thread to a file. Raises OSError."""
    thread = threading.get_ident()
    package = logging.getLogger("lora_trainer")
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(lambda record: record.thread == thread)
    level = package.level
    package.addHandler(handler)
    package.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
        # what a full disk refused before is lost, and no reason to fail
        with contextlib.suppress(OSError):
            handler.close()


class LogPart(TypedDict):
    """A part of a log, and the byte to go on from."""

    text: str
    next: int


def read_log(path: Path, since: int = 0) -> LogPart:
    """Return what stands after byte `since`, of that the last 200 KB."""
    if not path.is_file():
        return {"text": "", "next": 0}
    size = path.stat().st_size
    start = max(since if 0 <= since <= size else 0, size - MOST_BYTES)
    with open(path, "rb") as file:
        file.seek(start)
        data = _whole_characters(file.read(MOST_BYTES))
    return {"text": data.decode("utf-8", errors="replace"), "next": start + len(data)}


def _whole_characters(data: bytes) -> bytes:
    """Leave the first bytes of a UTF-8 character that is still being written for the next time."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if not 0x80 <= byte < 0xC0:  # the first byte of a character says how many follow
            return data[:-length] if length < _character_length(byte) else data
    return data


def _character_length(first_byte: int) -> int:
    if not 0xC2 <= first_byte <= 0xF4:
        return 1
    if first_byte < 0xE0:
        return 2
    return 3 if first_byte < 0xF0 else 4
