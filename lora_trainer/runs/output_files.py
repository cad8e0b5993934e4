"""Where a run's LoRAs go: the name itself, snapshots beside it, and a second place when the first
refuses.

Nothing of others is ever written over unasked, and whatever stood under the name when the run began
is kept in the job's folder, with its card, until the run has come to an end; a run that fails puts
it back.
"""

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.errors import Refused
from ..base.files import remove_leftovers, write_atomically
from ..lora.save import remove_lora
from .plan import free_name, session_id_of

log = logging.getLogger(__name__)
TRIES, PAUSE_SECONDS, LEFTOVER_SECONDS = 4, 1.0, 3600.0
Write = Callable[[Path], None]
"""Writes the LoRA of this moment to a path, whole or not at all; raises `Refused` (code
"cannot_save") when the disk refuses.
"""


class Output:
    """The files of one run. `session_id` is what its files say of themselves, see
    `plan.session_of`.
    """

    def __init__(
        self, path: Path, folder: Path | None, *, session_id: float, overwrite: bool
    ) -> None:
        """`path` is the LoRA's; `folder` the job's, where there is one; `overwrite`: snapshots of
        earlier runs of this name may be replaced.
        """
        self.path, self._folder, self._session_id, self._overwrite = (
            path,
            folder,
            session_id,
            overwrite,
        )
        self._kept = folder / "replaced" / path.name if folder else None
        self._wrote_early = self._settled = False

    def clear_leftovers(self) -> None:
        """Remove what writes that were killed left beside the LoRA; not what another program may be
        writing just now.
        """
        remove_leftovers([self.path.parent], older_than_seconds=LEFTOVER_SECONDS)

    def snapshot_path(self, step: int) -> Path:
        """Return `name-000100`, or a free name beside it when that is another run's."""
        path = self.path.with_name(f"{self.path.stem}-{step:06}{self.path.suffix}")
        if not path.exists() or self._overwrite or self._is_mine(path):
            return path
        return path.with_name(f"{free_name(path)}{path.suffix}")

    def step_of(self, name: str) -> int | None:
        """Return the step that a snapshot's name tells; None for another name."""
        found = re.fullmatch(rf"{re.escape(self.path.stem)}-(\d{{6,}})(?:-\d+)?", name)
        return int(found[1]) if found else None

    def remove_snapshot(self, name: str) -> bool:
        """Remove a snapshot of this very run with its card; False when it is another's, or cannot
        be removed now.
        """
        path = self.path.with_name(f"{name}{self.path.suffix}")
        if not path.exists():  # somebody took it; what is left is theirs
            return True
        if not self._is_mine(path):
            return False
        try:
            remove_lora(path)
        except OSError as error:
            log.warning("the old snapshot %s stays for now: %s", path.name, error)
            return False
        return True

    def write_early(self, write: Write) -> bool:
        """Write the name itself before the run has ended, once what stands there is kept; False
        when it cannot be kept.
        """
        if not self._wrote_early and self.path.exists() and not self._keep():
            return False
        write(self.path)
        self._wrote_early = True
        return True

    def write_at_last(self, write: Write, remark: Callable[[str], None]) -> Path:
        """Write the LoRA where it was asked for; if that fails again and again, in a second place.
        Raises the first `Refused` if none takes it.
        """
        refusal = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_SECONDS)
            try:
                write(self.path)
                self._settle()
                return self.path
            except Refused as error:
                if error.code != "cannot_save":
                    raise
                refusal = refusal or error
        for place in self._second_places():
            try:
                write(place)
            except Refused as error:
                log.warning(error.message)
            else:
                self._settled = True
                remark(
                    f"{refusal.message} So it was saved to {place}"
                    + ("." if place.parent == self.path.parent else "; copy it to the LoRA folder.")
                )
                return place
        raise refusal

    def put_back(self) -> Path | None:
        """The run failed: put back what it wrote over on its way, and return where; None when there
        is nothing to put back.
        """
        if (
            self._settled
            or not self._wrote_early
            or not self._kept
            or not self._kept.is_file()
            or not self._is_mine(self.path)
        ):
            return None
        try:
            for kept, place in zip(_with_card(self._kept), _with_card(self.path), strict=True):
                if kept.is_file():
                    write_atomically(place, kept.read_bytes(), check=True)
        except OSError as error:
            log.warning(
                "the LoRA that was there before could not be put back (%s); it is kept as %s",
                error,
                self._kept,
            )
            return None
        self._forget()
        return self.path

    def _is_mine(self, path: Path) -> bool:
        return session_id_of(path) == self._session_id

    def _keep(self) -> bool:
        """Copy what stands under the name into the job's folder; what a start before this one kept
        is older, and stays.
        """
        if self._kept is None:
            return False
        try:
            if not self._kept.exists():
                self._kept.parent.mkdir(parents=True, exist_ok=True)
                for place, kept in reversed(
                    list(zip(_with_card(self.path), _with_card(self._kept), strict=True))
                ):  # the LoRA last: it says that all is there
                    if place.is_file():
                        write_atomically(kept, place.read_bytes(), check=True)
        except OSError as error:
            log.warning(
                "%s cannot be kept aside (%s), so it is replaced only at the end",
                self.path.name,
                error,
            )
            return False
        return True

    def _settle(self) -> None:
        """The run came to an end: what it replaced is replaced."""
        self._settled = True
        self._forget()

    def _forget(self) -> None:
        for kept in _with_card(self._kept) if self._kept else ():
            try:
                kept.unlink(missing_ok=True)
            except OSError as error:  # held open by another program; it is in nobody's way
                log.info("%s stays: %s", kept, error)

    def _second_places(self) -> Iterator[Path]:
        """Beside the file, in case only the file itself is locked; in the job's folder; in the
        system's folder for temporary files.
        """
        yield self.path.with_name(f"{free_name(self.path)}{self.path.suffix}")
        if self._folder:
            yield self._folder / self.path.name
        yield Path(tempfile.gettempdir()) / "train-lora" / self.path.name


def _with_card(lora: Path) -> tuple[Path, Path]:
    return lora, lora.with_suffix(".json")
