"""How much of the disk jobs, their states, trash and models take, and what of it can go. LoRAs
always stay, and so does all that a job which has not finished needs to go on.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import Refused
from ..editor.library import Library
from ..runs.resume import state_folder
from ..training import state_files
from . import lock_file
from .store import JobStore

log = logging.getLogger(__name__)
WHAT = ("trash", "states", "models", "jobs")
DAY_SECONDS, GB = 86_400, 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is kept of finished jobs; 0 is no limit. `state_days` and `state_gb`: their training
    states, for more epochs; `keep_jobs`: how many.
    """

    state_days: float = 30.0
    state_gb: float = 5.0
    keep_jobs: int = 0


class Storage:
    """`delete` deletes a job that has ended, and returns where LoRAs are that lay in its folder;
    raises `Refused`.
    """

    def __init__(
        self,
        store: JobStore,
        library: Library,
        data_dir: Path,
        *,
        delete: Callable[[str], list[Path]],
        limits: Limits,
    ) -> None:
        self._store, self._library, self._data_dir, self._delete, self._limits = (
            store,
            library,
            data_dir,
            delete,
            limits,
        )

    def report(self) -> dict[str, Any]:
        """Return what takes how much: `{jobs, states, trash, models, free_bytes, limits}`; `states`
        are those of finished jobs, which `jobs` count, too.
        """
        finished = self._finished()
        states = [sum(map(_size, files)) for row in finished if (files := self._states(row))]
        trash = self._trash_files()
        models = _files_in(self._data_dir / "models")
        return {
            "jobs": {
                "count": len(self._store.ended()),
                "finished": len(finished),
                "bytes": sum(map(_size, _files_in(self._data_dir / "jobs"))),
            },
            "states": {"count": len(states), "bytes": sum(states)},
            "trash": {"count": len(trash), "bytes": sum(map(_size, trash))},
            "models": {"count": len(models), "bytes": sum(map(_size, models))},
            "free_bytes": shutil.disk_usage(_existing(self._data_dir)).free,
            "limits": dataclasses.asdict(self._limits),
        }

    def clear(self, what: str, *, keep: int = 0) -> dict[str, Any]:
        """Remove one kind of thing, of finished jobs all but the newest `keep`; returns `{count,
        bytes, problems}`. Raises `Refused` for another kind.
        """
        if what not in WHAT:
            raise Refused(
                f"There is nothing to clear that is called {what[:40]!r}; there are"
                f" {', '.join(WHAT)}.",
                field="what",
                code="bad_value",
            )
        return {
            "trash": self._empty_trash,
            "states": self._remove_states,
            "models": self._remove_models,
            "jobs": lambda: self._remove_jobs(keep),
        }[what]()

    def tidy(self) -> None:
        """Keep to the limits; what cannot be removed stays, and is tried again the next time."""
        for row in self._finished():
            state_files.prune(state_folder(self._folder(row["id"])), keep=1)
        if self._limits.keep_jobs:
            self._remove_jobs(self._limits.keep_jobs)
        left = self._limits.state_gb * GB
        for row in self._finished():  # the newest first
            files = self._states(row)
            left -= sum(map(_size, files))
            too_old = (
                self._limits.state_days
                and time.time() - (row["finished_at"] or row["created_at"])
                > self._limits.state_days * DAY_SECONDS
            )
            if files and (too_old or (self._limits.state_gb and left < 0)):
                freed, _ = _remove(files)
                log.info(
                    "removed the training state of job %s, %d MB: finished jobs keep theirs for %g"
                    " days and %g GB together",
                    row["id"],
                    freed // 1_000_000,
                    self._limits.state_days,
                    self._limits.state_gb,
                )

    # --- What there is ----------------------------------------------------------------------------

    def _finished(self) -> list[dict[str, Any]]:
        """Return the jobs that ended well and that no other program goes on with, newest first."""
        return [
            row
            for row in self._store.ended()
            if row["state"] == "finished" and not lock_file.is_claimed(self._folder(row["id"]))
        ]

    def _folder(self, job_id: str) -> Path:
        return self._data_dir / "jobs" / job_id

    def _states(self, row: Mapping[str, Any]) -> list[Path]:
        return _files_in(state_folder(self._folder(row["id"])))

    def _trash_files(self) -> list[Path]:
        return [path for folder in self._homes() for path in _files_in(folder / "trash")]

    def _homes(self) -> list[Path]:
        return sorted((self._data_dir / "datasets").glob("*/.train_lora"))

    # --- What goes --------------------------------------------------------------------------------

    def _empty_trash(self) -> dict[str, Any]:
        count, freed, problems = 0, 0, []
        for home in self._homes():
            if not (files := len(_files_in(home / "trash"))):
                continue
            try:
                freed += self._library.open(home.parent.name).files.empty_trash()
                count += files - len(_files_in(home / "trash"))
            except (Refused, OSError) as error:
                problems.append(
                    f"The trash of {home.parent.name} stays: {getattr(error, 'message', error)}"
                )
        return {"count": count, "bytes": freed, "problems": problems}

    def _remove_states(self) -> dict[str, Any]:
        return _removed(file for row in self._finished() for file in self._states(row))

    def _remove_models(self) -> dict[str, Any]:
        if any(
            row["kind"] == "captioning"
            for row in self._store.newest()
            if row["state"] in ("preparing", "captioning")
        ):
            raise Refused(
                "Captions are being written with one of the models. Wait until that has ended, or"
                " stop it.",
                code="busy",
            )
        return _removed(_files_in(self._data_dir / "models"))

    def _remove_jobs(self, keep: int) -> dict[str, Any]:
        count, freed, problems = 0, 0, []
        for row in self._finished()[keep:]:
            size = sum(map(_size, _files_in(self._folder(row["id"]))))
            try:
                moved = self._delete(row["id"])
            except Refused as error:
                problems.append(error.message)
                continue
            problems += [
                f"{path.name} lay in the folder of job {row['id']} only, and is {path} now."
                for path in moved
            ]
            count, freed = count + 1, freed + size
        return {"count": count, "bytes": freed, "problems": problems}


def _files_in(folder: Path) -> list[Path]:
    """Return the files under a folder; links are neither counted nor followed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile
        return 0


def _removed(files: Any) -> dict[str, Any]:
    files = list(files)
    freed, problems = _remove(files)
    return {"count": len(files) - len(problems), "bytes": freed, "problems": problems}


def _remove(files: list[Path]) -> tuple[int, list[str]]:
    freed, problems = 0, []
    for path in files:
        size = _size(path)
        try:
            path.unlink()
            freed += size
        except OSError as error:
            problems.append(f"{path.name} stays: {error.strerror or error}")
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # once it is empty
    return freed, problems


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
