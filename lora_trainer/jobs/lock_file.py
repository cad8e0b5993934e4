"""The lock file in a job's folder, which tells other processes that one is working on the job. The
system drops the lock when the process dies, however it does.
"""

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .job import STARTED, JobRow

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # typeshed has no fcntl that is None

NAME = "alive.lock"
LOCK_SECONDS = 2


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a job's folder while the job is worked on.

    Raises OSError where the folder cannot be written, or another program works in it.
    """
    with open(folder / NAME, "a+b") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _lock(file):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "another program works in it", str(folder))
            time.sleep(0.01)  # somebody may just be asking whether it is locked
        yield


def is_locked(folder: Path) -> bool:
    """Tell whether a process works on a job."""
    try:
        with open(folder / NAME, "r+b") as file:
            return not _lock(file)
    except OSError:
        return False


def is_abandoned(row: JobRow, folder: Path) -> bool:
    """Tell whether a job of another process was running when that process died."""
    return row.state in STARTED and not is_locked(folder)


def _lock(file: IO[bytes]) -> bool:
    """Try to lock an open file; a file system that knows no locks counts as locked by us."""
    try:
        if fcntl:
            # of the open file, not of the process: asking for it does not give up our own lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows only
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
