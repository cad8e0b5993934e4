"""Which jobs are alive in some process: a lock on a file in the job's folder, which the system
drops when the process dies, however it does.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .store import BEGUN

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "alive.lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Mark a job's folder as in use by this process. Raises OSError where the folder cannot be
    written.
    """
    with open(folder / NAME, "a+b") as file:
        _lock(file)
        yield


def is_claimed(folder: Path) -> bool:
    """Tell whether another process works on a job. Not for jobs of this process: to ask would let
    its claim go.
    """
    try:
        with open(folder / NAME, "r+b") as file:
            return not _lock(file)
    except OSError:
        return False


def is_lost(row: Mapping[str, Any], folder: Path) -> bool:
    """Tell whether a job of another process had begun when that process died. Not for jobs of this
    process.
    """
    return row["state"] in BEGUN and not is_claimed(folder)


def _lock(file: IO[bytes]) -> bool:
    """Try to lock an open file; a file system that knows no locks counts as locked by us."""
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
