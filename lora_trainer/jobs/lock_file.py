"""The lock file in a job's folder, which tells other processes that one is working on the job. The
system drops the lock when the process dies, however it does.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .job import STARTED, JobRow

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # typeshed has no fcntl that is None

NAME = "alive.lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a job's folder for this process. Raises OSError where the folder cannot be written."""
    with open(folder / NAME, "a+b") as file:
        _lock(file)
        yield


def is_locked_elsewhere(folder: Path) -> bool:
    """Tell whether another process works on a job.

    Never ask for a job of this process: closing the file again would release its own lock.
    """
    try:
        with open(folder / NAME, "r+b") as file:
            return not _lock(file)
    except OSError:
        return False


def is_abandoned(row: JobRow, folder: Path) -> bool:
    """Tell whether a job of another process was running when that process died."""
    return row.state in STARTED and not is_locked_elsewhere(folder)


def _lock(file: IO[bytes]) -> bool:
    """Try to lock an open file; a file system that knows no locks counts as locked by us."""
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows only
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
