"""Many files written atomically, and flushed together: one by one, each would wait for the disk by
itself.

A flush makes the disk write down what else waits for it. So all the files of a batch are written
first and flushed then, which costs hardly more than one flush; the first name changes when every
content is on the disk. A power cut leaves each file old or new, whole.
"""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLUSHING = 8  # threads: they wait for the disk, not for the processor


@contextlib.contextmanager
def prepared(contents: Mapping[Path, bytes]) -> Iterator[dict[Path, Path]]:
    """Write each content to a temporary file on the disk of its place, all of them flushed; yields
    the temporary files by place.

    A file that is there lends its mode. Those that were not renamed are removed at the end. Raises
    OSError; then none is left.

    They lie in a hidden folder of their own beside their places: ext4 takes the longer to make a
    file the more were just deleted near it, and every file that is replaced is one (5,000 in turns
    with their replacing: 2.6 s; in such folders: 1.3 s).
    """
    asides = {
        folder: folder / f".{uuid.uuid4().hex}.tmp"
        for folder in {place.parent for place in contents}
    }
    try:
        for aside in asides.values():
            aside.mkdir()
        temporaries = {
            place: asides[place.parent] / str(number) for number, place in enumerate(contents)
        }
        with contextlib.ExitStack() as opened:
            files = [
                opened.enter_context(_written(temporaries[place], place, content))
                for place, content in contents.items()
            ]
            with ThreadPoolExecutor(min(FLUSHING, max(1, len(files)))) as threads:
                list(threads.map(os.fsync, files))
        yield temporaries
    finally:
        for aside in asides.values():
            shutil.rmtree(aside, ignore_errors=True)


def flush_folders(folders: Iterable[Path]) -> None:
    """Have the names in these folders on the disk: what was renamed stays renamed. Not every system
    can.
    """
    for folder in folders:
        with contextlib.suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


@contextlib.contextmanager
def _written(temporary: Path, place: Path, content: bytes) -> Iterator[int]:
    with open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, os.stat(place).st_mode)
        yield file.fileno()


def write_atomically(path: Path, data: bytes, *, check: bool = False) -> None:
    """Write a file so that no reader, and no power cut, ever sees a part of it: temporary file in
    the same folder, flush, replace.

    A file that was there keeps its mode; a new one gets the user's usual mode. With `check` what
    was written is read back first; raises OSError when it is not the same, as for everything that a
    disk refuses.
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
    """Remove temporary files, and `atomic`'s folders of them, that a killed process left in these
    folders.
    """
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
                with contextlib.suppress(OSError):
                    if (
                        not older_than_seconds
                        or time.time() - path.stat().st_mtime > older_than_seconds
                    ):
                        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_file(source: Path, target: Path, attempts: int = 5) -> None:
    """`os.replace`, several times on Windows, which refuses while another program has the target
    open.
    """
    for attempt in range(attempts):
        try:
            return os.replace(source, target)
        except PermissionError:
            if os.name != "nt" or attempt == attempts - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
