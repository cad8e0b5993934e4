"""Where a run's LoRAs go: the name itself, snapshots beside it, and a second place when the first
refuses.

Nobody else's file is overwritten unasked. What had the name when the run began is kept in the job's
folder, with its card, until the run has ended; a run that fails puts it back.
"""

import glob
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..base.files import remove_leftovers, write_atomically
from ..base.paths import numbered_paths
from ..base.tensor_files import read_header
from ..lora.lora_folder import lora_files
from ..lora.save import remove_lora
from ..settings.config import TrainConfig
from ..settings.lora_name import check_name

log = logging.getLogger(__name__)
TRIES, PAUSE_SECONDS, LEFTOVER_SECONDS = 4, 1.0, 3600.0
LORA_ENDINGS = (".safetensors", ".pt", ".ckpt")
Write = Callable[[Path], None]
"""Writes the LoRA of this moment to a path, whole or not at all; raises `Refused` (code
"cannot_save") when the disk refuses.
"""


# --- Names ----------------------------------------------------------------------------------------


def plan_output(config: TrainConfig, lora_dir: Path, *, session_id: float | None = None) -> Path:
    """Return where the LoRA will be; `session_id` is that of a run that is resumed.

    Raises `Refused` for a name that is missing, impossible or taken, and for a folder that nothing
    can be saved in.
    """
    if not config.output_name:
        raise Refused(
            "Give the LoRA a name: it becomes the file name and is written in prompts.",
            field="output_name",
            code=ErrorCode.NO_NAME,
        )
    folder = Path(config.output_dir or lora_dir)
    path = folder / f"{check_name(config.output_name)}.safetensors"
    if session_id is None:
        _check_free(config, path, lora_dir)
    else:
        _check_own(config, path, lora_dir, session_id)
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        why = "no permission." if existing.is_dir() else f"{existing} is not a folder."
        raise Refused(
            f"Nothing can be saved in {folder}: {why}",
            field="output_dir",
            code=ErrorCode.CANNOT_SAVE,
        )
    return path


def _check_free(config: TrainConfig, path: Path, lora_dir: Path) -> None:
    """Raise `Refused` for files that are in the way of a new LoRA."""
    new_name = free_name(path)
    if path.exists() and not config.overwrite:
        raise _name_taken(
            f"A LoRA called {config.output_name} exists already. Replace it, or call the new one"
            f" {new_name}."
        )
    if clash := next(same_names_elsewhere(path, lora_dir), None):
        raise _name_taken(f"{_mixed_up(clash, path)} Call the new one {new_name}.")
    saves = config.save_steps or config.save_every_n_epochs
    if saves and not config.overwrite and (clash := next(_snapshots_of(path), None)):
        raise _name_taken(f"{_mixed_up(clash, path)} Replace it, or call the new one {new_name}.")


def _check_own(config: TrainConfig, path: Path, lora_dir: Path, session_id: float) -> None:
    """Raise `Refused` for files in the way of a resumed run that it has not saved itself.

    Its snapshots find a free name.
    """
    if path.exists() and not config.overwrite and session_id_of(path) != session_id:
        raise _name_taken(
            f"A LoRA called {config.output_name} exists already, and is not of this run. Replace"
            " it, or move it away: a run keeps its name to its end."
        )
    for other in same_names_elsewhere(path, lora_dir):
        if session_id_of(other) != session_id:
            raise _name_taken(
                f"{_mixed_up(other, path)} Move it away: a run keeps its name to its end."
            )


def _mixed_up(clash: Path, path: Path) -> str:
    return f"There is {clash} already, which {path.stem} would be mixed up with."


def _name_taken(message: str) -> Refused:
    return Refused(message, field="output_name", code=ErrorCode.NAME_TAKEN)


def session_id_of(path: Path) -> float | None:
    """Return the session id of the run that saved a LoRA: when it began, in seconds since 1970.

    None for a file that does not say.
    """
    try:
        return float(read_header(path).metadata["ss_training_started_at"])
    except (OSError, KeyError, ValueError):
        return None


def free_name(path: Path) -> str:
    """Return the stem with the first number that is not taken: `name-2`, `name-3`, …"""
    return next(other for other in numbered_paths(path) if not other.exists()).stem


def same_names_elsewhere(path: Path, lora_dir: Path) -> Iterator[Path]:
    """Find other LoRAs of the same name below `lora_dir`: a prompt's tag could mean either."""
    for other in lora_files(lora_dir):
        if other.stem != path.stem or other.suffix.lower() not in LORA_ENDINGS:
            continue
        if not _is_same_file(other, path):
            yield other


def _is_same_file(one: Path, other: Path) -> bool:
    """Tell whether two paths are one file, by links or on a disk that ignores case."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return one.name == other.name and one.parent.resolve() == other.parent.resolve()


def _snapshots_of(path: Path) -> Iterator[Path]:
    return path.parent.glob(f"{glob.escape(path.stem)}-[0-9][0-9][0-9][0-9][0-9][0-9].safetensors")


def tag_of(name: str, weight: float) -> str:
    """Return what calls a LoRA in a prompt."""
    return f"<lora:{name}:{weight:g}>"


def check_space(path: Path, needed_bytes: int) -> None:
    """Raise `Refused` when the disk has no room for a file and the temporary copy beside it."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < 2 * needed_bytes + 10_000_000:
        raise Refused(
            f"The disk of {path.parent} has {free_bytes / 1e6:.0f} MB left; the LoRA needs"
            f" {2 * needed_bytes / 1e6 + 10:.0f} MB. Free some space.",
            field="output_dir",
            code=ErrorCode.DISK_FULL,
        )


# --- Files ----------------------------------------------------------------------------------------


class OutputFiles:
    """The files of one run.

    `path` is the LoRA's, `folder` the job's, where there is one. `session_id` is what its files say
    of themselves, as `session_id_of`. With `overwrite`, snapshots of earlier runs of this name may
    be replaced.
    """

    def __init__(
        self, path: Path, folder: Path | None, *, session_id: float, overwrite: bool
    ) -> None:
        self.path = path
        self._folder = folder
        self._session_id = session_id
        self._overwrite = overwrite
        self._kept = folder / "replaced" / path.name if folder else None
        self._wrote_early = False
        self._settled = False

    def clear_leftovers(self) -> None:
        """Remove what killed writes left beside the LoRA, unless it may still be written."""
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
        """Remove a snapshot of this run with its card; False when that is not possible now.

        It is False, too, for another run's.
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

    def write_before_end(self, write: Write) -> bool:
        """Write the name itself before the run has ended.

        False when what has the name already cannot be kept aside.
        """
        if not self._wrote_early and self.path.exists() and not self._keep():
            return False
        write(self.path)
        self._wrote_early = True
        return True

    def write_final(self, write: Write, warn: Callable[[str], None]) -> Path:
        """Write the LoRA where it was asked for; if that fails again and again, in a second place.

        `warn` gets a sentence that says where. Raises the first `Refused` if no place takes it.
        """
        refusal: Refused | None = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_SECONDS)
            try:
                write(self.path)
                self._settle()
                return self.path
            except Refused as error:
                if error.code != ErrorCode.CANNOT_SAVE:
                    raise
                refusal = refusal or error
        assert refusal is not None  # TRIES is above 0
        for place in self._second_places():
            try:
                write(place)
            except Refused as error:
                log.warning(error.message)
                continue
            self._settled = True
            beside = place.parent == self.path.parent
            advice = "." if beside else "; copy it to the LoRA folder."
            warn(f"{refusal.message} So it was saved to {place}{advice}")
            return place
        raise refusal

    def put_back(self) -> Path | None:
        """Put back what a failed run has overwritten, and return where; None if nothing was."""
        if self._settled or not self._wrote_early or not self._kept:
            return None
        if not self._kept.is_file() or not self._is_mine(self.path):
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
        """Copy what has the name into the job's folder; False when that is not possible.

        What an earlier start of this run has kept is older, and stays.
        """
        if self._kept is None:
            return False
        try:
            if not self._kept.exists():
                self._kept.parent.mkdir(parents=True, exist_ok=True)
                pairs = list(zip(_with_card(self.path), _with_card(self._kept), strict=True))
                for place, kept in reversed(pairs):  # the LoRA last: it says that all is there
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
        """Let go of what the run has replaced, at its end."""
        self._settled = True
        self._forget()

    def _forget(self) -> None:
        for kept in _with_card(self._kept) if self._kept else ():
            try:
                kept.unlink(missing_ok=True)
            except OSError as error:  # held open by another program, which does no harm
                log.info("%s stays: %s", kept, error)

    def _second_places(self) -> Iterator[Path]:
        """Try beside the file, which may be locked, the job's folder, the temporary folder."""
        yield self.path.with_name(f"{free_name(self.path)}{self.path.suffix}")
        if self._folder:
            yield self._folder / self.path.name
        yield Path(tempfile.gettempdir()) / "train-lora" / self.path.name


def _with_card(lora: Path) -> tuple[Path, Path]:
    return lora, lora.with_suffix(".json")
