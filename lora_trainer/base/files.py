"""Files read within limits, and written atomically: no reader, and no power cut, ever sees a part
of one.

`write_atomically` writes one file. `flushed_temporaries` prepares many and flushes them together,
which costs hardly more than flushing one: a flush makes the disk write everything that waits for
it. `remove_leftovers` deletes what a killed process left behind.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .paths import is_inside

NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
FLUSH_THREADS = 8  # they wait for the disk, not for the processor
REPLACE_ATTEMPTS = 5
REPLACE_WAIT_SECONDS = 0.2
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.tmp")


# --- One file -------------------------------------------------------------------------------------


def read_small_file(path: Path, *, most_bytes: int) -> bytes | None:
    """Return a file's content, or None when there is no such file.

    A link that leads out of its folder, a pipe or a device is none either. Raises OSError, with
    EFBIG for a file of more than `most_bytes`.
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


def write_atomically(path: Path, data: bytes, *, check: bool = False) -> None:
    """Write a file by way of a temporary one in the same folder: write, flush, replace.

    An existing file keeps its mode; a new one gets the user's usual mode. With `check` the
    temporary file is read back first. Raises OSError when the disk refuses, or when the content
    read back differs.
    """
    temporary = _temporary_path(path.parent)
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


def replace_file(source: Path, target: Path) -> None:
    """Call `os.replace`, several times on Windows, which refuses while another program has the
    target open.
    """
    for attempt in range(1, REPLACE_ATTEMPTS + 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or attempt == REPLACE_ATTEMPTS:
                raise
            time.sleep(REPLACE_WAIT_SECONDS * attempt)


# --- Many files -----------------------------------------------------------------------------------


@contextlib.contextmanager
def flushed_temporaries(contents: Mapping[Path, bytes]) -> Iterator[dict[Path, Path]]:
    """Write each content to a temporary file, and flush all; yields the temporary file by target.

    The caller renames them to their targets; those that were not renamed are deleted at the end. A
    temporary file has the mode of its target, if there is one. Raises OSError; then none is left.

    The temporary files lie in a hidden folder of their own beside their targets: creating a file
    next to just deleted ones is slow on ext4, and each replaced file is a deleted one (5,000 files:
    2.6 s in the same folder, 1.3 s in such folders).
    """
    folders = {folder: _temporary_path(folder) for folder in {path.parent for path in contents}}
    try:
        for folder in folders.values():
            folder.mkdir()
        temporaries = {
            target: folders[target.parent] / str(number) for number, target in enumerate(contents)
        }
        with contextlib.ExitStack() as open_files:
            descriptors = [
                open_files.enter_context(_written(temporaries[target], target, content))
                for target, content in contents.items()
            ]
            _flush_together(descriptors)
        yield temporaries
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def flush_folders(folders: Iterable[Path]) -> None:
    """Flush folders' entries, so that renamed files stay renamed; does nothing where the system
    cannot.
    """
    for folder in folders:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _written(temporary: Path, target: Path, content: bytes) -> Iterator[int]:
    """Write a temporary file with its target's mode; yields its descriptor while it is open."""
    with open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, os.stat(target).st_mode)
        yield file.fileno()


def _flush_together(descriptors: list[int]) -> None:
    threads_needed = min(FLUSH_THREADS, max(1, len(descriptors)))
    with ThreadPoolExecutor(threads_needed) as threads:
        list(threads.map(os.fsync, descriptors))


# --- Leftovers ------------------------------------------------------------------------------------


def remove_leftovers(folders: Iterable[Path], *, older_than_seconds: float = 0.0) -> None:
    """Delete the temporary files and folders that a killed process left in these folders."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if _TEMPORARY_NAME.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    if not older_than_seconds or _age_seconds(path) > older_than_seconds:
                        _delete(path)


def _temporary_path(folder: Path) -> Path:
    return folder / f".{uuid.uuid4().hex}.tmp"


def _age_seconds(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
