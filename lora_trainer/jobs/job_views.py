"""Makes a `JobView` of a row, the figures of the running job, the place in the queue, and the
training state in the job's folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ..runs.resume import state_step
from . import lock_file
from .job import ALIVE, JobKind, JobRow, JobState, JobUpdate, JobView
from .store import JobStore, database_path, folder_of_job
from .training_job import tensorboard_dir

MOST_LISTED = 1000

_DEFAULTS = {
    "waiting_for": "",
    "checkpoint": "",
    "state_step": 0,
    "snapshots": [],
    "remarks": [],
    "stopping": False,
    "pausing": False,
    "free_memory": False,
    "pictures": None,
    "total_steps": None,
    "elapsed_seconds": None,
}
_INTERNAL = ("resume", "for_checkpoint", "for_sha256", "for_kind")  # columns that no client needs


def view_job(row: JobRow, current: JobUpdate, folder: Path, *, position: int | None) -> JobView:
    """Return what the API says of a job.

    `current` has the values that are newer than the row: the running job's, or how it ended.
    `position` is its place among the jobs that wait, from 0.
    """
    values = {**_DEFAULTS, **row.as_dict(), **current}
    job = cast(JobView, {name: values[name] for name in values if name not in _INTERNAL})
    job["checkpoint"] = job["checkpoint"] or row.for_checkpoint
    if job["state"] != JobState.PAUSED:
        job["waiting_for"] = ""
    step = _resume_step(row, job["state"], folder)
    job["position"] = position
    job["resumable"] = _can_resume(row.kind, job["state"], step)
    job["resume_step"] = step
    job["ended_at"] = job["finished_at"]
    job["tensorboard_dir"] = _existing_tensorboard_dir(row, folder)
    return job


def list_jobs(data_dir: Path) -> list[JobView]:
    """Return the newest jobs of a data folder, newest first, without a service or a model.

    Nothing is changed; a job that had started, and that no process works on, is interrupted.
    """
    path = database_path(data_dir)
    if not path.is_file():
        return []
    store = JobStore(path)
    try:
        waiting = store.waiting()
        rows = store.newest(MOST_LISTED)
        return [_view_stored(row, folder_of_job(data_dir, row.id), waiting) for row in rows]
    finally:
        store.close()


def position_of(job_id: str, waiting: Sequence[str]) -> int | None:
    return waiting.index(job_id) if job_id in waiting else None


def _view_stored(row: JobRow, folder: Path, waiting: Sequence[str]) -> JobView:
    current: JobUpdate = (
        {"state": JobState.INTERRUPTED} if lock_file.is_abandoned(row, folder) else {}
    )
    return view_job(row, current, folder, position=position_of(row.id, waiting))


def _resume_step(row: JobRow, state: JobState, folder: Path) -> int | None:
    """Return the step of the newest training state, for a job that ended or waits to resume."""
    if row.kind != JobKind.TRAINING:
        return None
    if state in ALIVE and not row.resume:
        return None
    return state_step(folder)


def _can_resume(kind: JobKind, state: JobState, step: int | None) -> bool:
    """A finished run resumes from its training state only; any other also from its beginning."""
    if kind != JobKind.TRAINING or state in ALIVE:
        return False
    return state != JobState.FINISHED or step is not None


def _existing_tensorboard_dir(row: JobRow, folder: Path) -> str | None:
    if row.kind != JobKind.TRAINING:
        return None
    place = tensorboard_dir(row.config, folder)
    return str(place.absolute()) if place.is_dir() else None
