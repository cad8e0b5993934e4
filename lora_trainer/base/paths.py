"""Paths that requests name: read, and kept inside the folders that are allowed."""

import contextlib
import contextvars
import itertools
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import Refused

LONGEST_NAME_BYTES, LONGEST_PATH_BYTES = 255, 3000
REACHABLE = "This WebUI can be reached from other machines"
_asked_under: contextvars.ContextVar[str] = contextvars.ContextVar("asked_under", default="")


@contextlib.contextmanager
def serving_foreign_host(name: str) -> Iterator[None]:
    """Note, for what is done inside, under which foreign host name a request came; "" for one
    under this machine's own. Threads that a server runs a request in see it; jobs do not."""
    token = _asked_under.set(name)
    try:
        yield
    finally:
        _asked_under.reset(token)


def foreign_host() -> str:
    """Return the foreign host name under which the request that is answered came, or ""."""
    return _asked_under.get()


def expand_user(text: str) -> Path:
    """Return a path with `~` filled in; one of a user who is not known stays as it is written."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def numbered_paths(path: Path) -> Iterator[Path]:
    """Yield `name-2`, `name-3`, … beside a file, for whoever looks for a name that is not taken."""
    return (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))


def check_path_length(path: Path) -> None:
    """Raise `Refused` for a path that no file system has: merely looking for it would be an
    error.
    """
    if len(str(path).encode("utf-8", "replace")) > LONGEST_PATH_BYTES or any(
        len(part.encode("utf-8", "replace")) > LONGEST_NAME_BYTES for part in path.parts
    ):
        raise Refused(
            f"{str(path)[:80]!r}… is too long for a path.", field="train_data_dir", code="bad_value"
        )


def check_inside(path: Path, roots: Sequence[Path], *, because: str = REACHABLE) -> None:
    """Raise `Refused` (code "forbidden_path") for a path outside these folders, links followed.

    A path on another machine (`\\\\server\\share`) is refused by its text: merely looking at it
    makes Windows send the user's password hash there.
    """
    resolved = (
        None
        if _elsewhere(path)
        and not any(_elsewhere(root) and path.is_relative_to(root) for root in roots)
        else _resolved(path)
    )
    if resolved is None or not any(resolved.is_relative_to(root.resolve()) for root in roots):
        raise Refused(
            f"{because}, so only folders inside {', '.join(str(root) for root in roots)} may be"
            " used. Start it with --train-lora-allowed-dirs to add some.",
            field="train_data_dir",
            code="forbidden_path",
        )


def check_regular_file(path: Path) -> None:
    """Raise `Refused` for what is there and is no file: a folder, or a pipe or device, of which a
    read may never end. Raises OSError for what is not there."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise Refused(f"{path.name} is {kind}, not a file.", code="not_a_file")


def is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a path is inside a folder once links are followed; False for a circle of
    links.
    """
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: Python before 3.13
        return False


def _elsewhere(path: Path) -> bool:
    return str(path).replace("/", "\\").startswith("\\\\")


def _resolved(path: Path) -> Path | None:
    try:
        return expand_user(str(path)).resolve()
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, not text
        return None
