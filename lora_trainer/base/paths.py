"""Paths that a user or a request names: expanded, and checked to be in the folders that may be
read.
"""

import contextlib
import contextvars
import itertools
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import ErrorCode, Refused

LONGEST_NAME_BYTES = 255
LONGEST_PATH_BYTES = 3000
REACHABLE = "This WebUI can be reached from other machines"
_foreign_host: contextvars.ContextVar[str] = contextvars.ContextVar("foreign_host", default="")


@contextlib.contextmanager
def request_for_host(name: str) -> Iterator[None]:
    """Note the foreign host name that a request was addressed to; "" for a name of this machine.

    Holds for the block and the threads that a server runs the request in, not for jobs.
    """
    token = _foreign_host.set(name)
    try:
        yield
    finally:
        _foreign_host.reset(token)


def foreign_host() -> str:
    """Return the foreign host name that the present request was addressed to, or ""."""
    return _foreign_host.get()


def expand_user(text: str) -> Path:
    """Return a path with `~` expanded; one of an unknown user stays as it is written."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def numbered_paths(path: Path) -> Iterator[Path]:
    """Yield `name-2`, `name-3`, … beside a file, to find a name that is not taken."""
    return (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))


def check_path_length(path: Path) -> None:
    """Raise `Refused` for a path that no file system has, which OSError would be raised for."""
    is_too_long = _length_bytes(str(path)) > LONGEST_PATH_BYTES
    if is_too_long or any(_length_bytes(part) > LONGEST_NAME_BYTES for part in path.parts):
        raise Refused(
            f"{str(path)[:80]!r}… is too long for a path.",
            field="train_data_dir",
            code=ErrorCode.BAD_VALUE,
        )


def check_inside(path: Path, roots: Sequence[Path], *, because: str = REACHABLE) -> None:
    """Raise `Refused` (code "forbidden_path") for a path outside these folders, links followed.

    A path on another machine (`\\\\server\\share`) is refused by its text: merely looking at it
    makes Windows send the user's password hash there.
    """
    is_foreign_share = _is_network_share(path) and not any(
        _is_network_share(root) and path.is_relative_to(root) for root in roots
    )
    resolved = None if is_foreign_share else _resolved(path)
    if resolved is None or not any(resolved.is_relative_to(root.resolve()) for root in roots):
        raise Refused(
            f"{because}, so only folders inside {', '.join(str(root) for root in roots)} may be"
            " used. Start it with --train-lora-allowed-dirs to add some.",
            field="train_data_dir",
            code=ErrorCode.FORBIDDEN_PATH,
        )


def check_regular_file(path: Path) -> None:
    """Raise `Refused` for a folder, and for a pipe or device, of which a read may never end.

    Raises OSError for a path that does not exist.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise Refused(f"{path.name} is {kind}, not a file.", code=ErrorCode.NOT_A_FILE)


def is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a path is inside a folder, links followed; False for a circle of links."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: Python before 3.13
        return False


def _length_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _is_network_share(path: Path) -> bool:
    return str(path).replace("/", "\\").startswith("\\\\")


def _resolved(path: Path) -> Path | None:
    try:
        return expand_user(str(path)).resolve()
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
        check_path_length(path)
        if self.allowed_roots is not None:
            check_inside(path, self.allowed_roots)
        elif self.foreign_roots is not None and (name := foreign_host()):
            check_inside(path, self.foreign_roots, because=_asked_for_as(name))

    def permits(self, path: Path) -> bool:
        try:
            self.check(path)
        except Refused:
            return False
        return True

    def check_deletion(self) -> None:
        """Raise `Refused` for deleting where a page of another site could be asking."""
        if self.allowed_roots is None and self.foreign_roots is not None and foreign_host():
            raise Refused(
                f"{_asked_for_as(foreign_host())}, so nothing is removed for good. Open it on the"
                " machine itself, as http://127.0.0.1 with its port.",
                code=ErrorCode.FORBIDDEN_PATH,
            )

    def is_local_request(self) -> bool:
        """Tell whether only somebody at this machine can have sent the request."""
        return self.allowed_roots is None and not foreign_host()


def _asked_for_as(name: str) -> str:
    return f"This WebUI was asked for as {name}, which is not this machine's name"
