"""What jobs, training states, trash and downloaded models take of the disk, and clearing it. LoRAs
always stay, and so does all that a job which has not finished needs to go on.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.paths import PathRules
from ..editor.library import Library
from ..runs.resume import state_folder
from ..training import state_files
from . import lock_file
from .job import JobKind, JobRow, JobState
from .store import JobStore, folder_of_job, jobs_folder

log = logging.getLogger(__name__)
CLEARABLE = ("trash", "states", "models", "jobs")
DAY_SECONDS = 86_400
GB = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is kept of finished jobs; 0 is no limit. `state_days` and `state_gb`: their training
    states, for more epochs; `keep_jobs`: how many.
    """

    state_days: float = 30.0
    state_gb: float = 5.0
    keep_jobs: int = 0


DEFAULT_LIMITS = Limits()


class Usage(TypedDict):
    count: int
    bytes: int


class JobsUsage(Usage):
    finished: int


class StorageReport(TypedDict):
    """`states` are the training states of finished jobs, which `jobs` count, too."""

    jobs: JobsUsage
    states: Usage
    trash: Usage
    models: Usage
    free_bytes: int
    limits: dict[str, float]


class Cleared(TypedDict):
    """How many things were removed, their size, and a sentence for each that stays or moved."""

    count: int
    bytes: int
    problems: list[str]


class Storage:
    """`delete_job` deletes a job that has ended and returns the LoRAs that lay only in its folder,
    where they are now; it raises `Refused`. `lock_queue` keeps jobs from beginning meanwhile.
    """

    def __init__(
        self,
        store: JobStore,
        library: Library,
        data_dir: Path,
        *,
        delete_job: Callable[[str], list[Path]],
        lock_queue: Callable[[], contextlib.AbstractContextManager[None]],
        path_rules: PathRules,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._store = store
        self._library = library
        self._data_dir = data_dir
        self._delete_job = delete_job
        self._lock_queue = lock_queue
        self._path_rules = path_rules
        self._limits = limits

    def report(self) -> StorageReport:
        """Return what takes how much of the disk."""
        finished = self._finished()
        states = [_total_size(files) for row in finished if (files := self._states(row))]
        trash = self._trash_files()
        models = _files_in(self._data_dir / "models")
        return {
            "jobs": {
                "count": len(self._store.ended()),
                "finished": len(finished),
                "bytes": _total_size(_files_in(jobs_folder(self._data_dir))),
            },
            "states": {"count": len(states), "bytes": sum(states)},
            "trash": {"count": len(trash), "bytes": _total_size(trash)},
            "models": {"count": len(models), "bytes": _total_size(models)},
            "free_bytes": shutil.disk_usage(_existing(self._data_dir)).free,
            "limits": dataclasses.asdict(self._limits),
        }

    def clear(self, what: str, *, keep: int = 0) -> Cleared:
        """Remove "trash", "states", "models", or the finished "jobs" but the newest `keep`. Raises
        `Refused`.
        """
        self._path_rules.check_deletion()
        if what == "trash":
            return self._empty_trash()
        if what == "models":
            return self._remove_models()
        if what == "states":
            with self._lock_queue():
                return self._remove_states()
        if what == "jobs":
            with self._lock_queue():
                return self._remove_jobs(keep)
        raise Refused(
            f"There is nothing to clear that is called {what[:40]!r}; there are"
            f" {', '.join(CLEARABLE)}.",
            field="what",
            code=ErrorCode.BAD_VALUE,
        )

    def tidy(self) -> None:
        """Keep to the limits; what cannot be removed stays, and is tried again the next time."""
        try:
            with self._lock_queue():
                self._tidy()
        except Exception:  # where jobs meet the disk; no job is worth less for it
            log.exception("old jobs could not be cleared away")

    def _tidy(self) -> None:
        for row in self._finished():
            state_files.prune(state_folder(self._folder(row.id)), keep=1)
        if self._limits.keep_jobs:
            self._remove_jobs(self._limits.keep_jobs)
        left_bytes = self._limits.state_gb * GB
        for row in self._finished():  # the newest first
            files = self._states(row)
            left_bytes -= _total_size(files)
            too_much = self._limits.state_gb and left_bytes < 0
            if files and (too_much or self._is_outdated(row)):
                self._remove_state(row, files)

    def _is_outdated(self, row: JobRow) -> bool:
        if not self._limits.state_days:
            return False
        age_seconds = time.time() - (row.finished_at or row.created_at)
        return age_seconds > self._limits.state_days * DAY_SECONDS

    def _remove_state(self, row: JobRow, files: list[Path]) -> None:
        freed, _ = _remove(files)
        log.info(
            "removed the training state of job %s, %d MB: finished jobs keep theirs for %g days"
            " and %g GB together",
            row.id,
            freed // 1_000_000,
            self._limits.state_days,
            self._limits.state_gb,
        )

    # --- Finding ----------------------------------------------------------------------------------

    def _finished(self) -> list[JobRow]:
        """Return the finished jobs, newest first, but those that another program trains on."""
        return [
            row
            for row in self._store.ended()
            if row.state == JobState.FINISHED and not lock_file.is_locked(self._folder(row.id))
        ]

    def _folder(self, job_id: str) -> Path:
        return folder_of_job(self._data_dir, job_id)

    def _states(self, row: JobRow) -> list[Path]:
        return _files_in(state_folder(self._folder(row.id)))

    def _trash_files(self) -> list[Path]:
        return [path for folder in self._homes() for path in _files_in(folder / "trash")]

    def _homes(self) -> list[Path]:
        return sorted((self._data_dir / "datasets").glob("*/.train_lora"))

    # --- Removing ---------------------------------------------------------------------------------

    def _empty_trash(self) -> Cleared:
        count, freed = 0, 0
        problems: list[str] = []
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

    def _remove_states(self) -> Cleared:
        return _removed(file for row in self._finished() for file in self._states(row))

    def _remove_models(self) -> Cleared:
        captioning = [
            row
            for row in self._store.newest(kind=JobKind.CAPTIONING)
            if row.state in (JobState.PREPARING, JobState.CAPTIONING)
        ]
        if captioning:
            raise Refused(
                "Captions are being written with one of the models. Wait until that has ended, or"
                " stop it.",
                code=ErrorCode.BUSY,
            )
        return _removed(_files_in(self._data_dir / "models"))

    def _remove_jobs(self, keep: int) -> Cleared:
        count, freed = 0, 0
        problems: list[str] = []
        for row in self._finished()[keep:]:
            size = _total_size(_files_in(self._folder(row.id)))
            try:
                moved = self._delete_job(row.id)
            except Refused as error:
                problems.append(error.message)
                continue
            for path in moved:
                place = f"the folder of job {row.id} only"
                problems.append(f"{path.name} lay in {place}, and is {path} now.")
            count += 1
            freed += size
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


def _total_size(files: Sequence[Path]) -> int:
    return sum(_size(path) for path in files)


def _removed(files: Iterable[Path]) -> Cleared:
    files = list(files)
    freed, problems = _remove(files)
    return {"count": len(files) - len(problems), "bytes": freed, "problems": problems}


def _remove(files: list[Path]) -> tuple[int, list[str]]:
    freed = 0
    problems = []
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
