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
def asked_under(name: str) -> Iterator[None]:
    """Note, for what is done inside, under which foreign host name a request came; "" for one
    under this machine's own. Threads that a server runs a request in see it; jobs do not."""
    token = _asked_under.set(name)
    try:
        yield
    finally:
        _asked_under.reset(token)


def foreign_name() -> str:
    """Return the foreign host name under which the request that is answered came, or ""."""
    return _asked_under.get()


def expanded(text: str) -> Path:
    """Return a path with `~` filled in; one of a user who is not known stays as it is written."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def numbered(path: Path) -> Iterator[Path]:
    """Yield `name-2`, `name-3`, … beside a file, for whoever looks for a name that is not taken."""
    return (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))


def check_possible(path: Path) -> None:
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


def check_file(path: Path) -> None:
    """Raise `Refused` for what is there and is no file: a folder, or a pipe or device, of which a
    read may never end. Raises OSError for what is not there."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise Refused(f"{path.name} is {kind}, not a file.", code="not_a_file")


def lies_in(path: Path, folder: Path) -> bool:
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
        return expanded(str(path)).resolve()
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, not text
        return None


class PathRules:
    """Which paths the request that is being answered may name.

    `allowed_roots`: folders that paths must lie in; None when only this machine can ask.
    `foreign_roots`: those for requests under a foreign host name, which may be a page of another
    site by DNS rebinding; None where such requests do not get here.
    """

    def __init__(self, allowed_roots: list[Path] | None, foreign_roots: list[Path] | None) -> None:
        self.allowed_roots = allowed_roots
        self.foreign_roots = foreign_roots

    def check(self, path: Path) -> None:
        """Raise `Refused` for a path outside the roots, links followed, or that cannot exist."""
        check_possible(path)
        if self.allowed_roots is not None:
            check_inside(path, self.allowed_roots)
        elif self.foreign_roots is not None and (name := foreign_name()):
            check_inside(path, self.foreign_roots, because=_asked_for_as(name))

    def permits(self, path: Path) -> bool:
        try:
            self.check(path)
        except Refused:
            return False
        return True

    def check_deletion(self) -> None:
        """Raise `Refused` for deleting where a page of another site could be asking."""
        if self.allowed_roots is None and self.foreign_roots is not None and foreign_name():
            raise Refused(
                f"{_asked_for_as(foreign_name())}, so nothing is removed for good. Open it on the"
                " machine itself, as http://127.0.0.1 with its port.",
                code="forbidden_path",
            )

    def is_local_request(self) -> bool:
        """Tell whether only somebody at this machine can have sent the request."""
        return self.allowed_roots is None and not foreign_name()


def _asked_for_as(name: str) -> str:
    return f"This WebUI was asked for as {name}, which is not this machine's name"
