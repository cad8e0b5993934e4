"""A job's log.txt: what the package logs in the job's thread, and how a page reads it bit by
bit.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "log.txt"
MOST_BYTES = 200_000


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Add what the package logs in this thread to a file. Raises OSError."""
    thread, package, handler = (
        threading.get_ident(),
        logging.getLogger("lora_trainer"),
        logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"),
    )
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
        with contextlib.suppress(
            OSError
        ):  # what a full disk refused before is lost, and no reason to fail
            handler.close()


def read_log(path: Path, since: int = 0) -> dict[str, Any]:
    """Return `{text, next}`: what stands after byte `since`, of that the last 200 KB, and the byte
    to go on from.
    """
    if not path.is_file():
        return {"text": "", "next": 0}
    size = path.stat().st_size
    start = max(since if 0 <= since <= size else 0, size - MOST_BYTES)
    with open(path, "rb") as file:
        file.seek(start)
        data = _whole_letters(file.read(MOST_BYTES))
    return {"text": data.decode("utf-8", errors="replace"), "next": start + len(data)}


def _whole_letters(data: bytes) -> bytes:
    """Leave the first bytes of a letter that is still being written for the next time."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if not 0x80 <= byte < 0xC0:  # not a letter's later byte: its first one says how many follow
            needed = (
                1 if not 0xC2 <= byte <= 0xF4 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            )
            return data[:-length] if length < needed else data
    return data
