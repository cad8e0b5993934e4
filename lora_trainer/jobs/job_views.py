"""What is told of a job: its row, where it is if it runs, its place in the queue, and whether and
from where it can go on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runs.resume import state_step
from .store import ALIVE
from .training_job import tensorboard_dir

_NOTHING = {
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
_OURS = ("resume", "for_checkpoint", "for_sha256", "for_kind")  # columns that nobody needs to know


def describe(
    row: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, position: int | None
) -> dict[str, Any]:
    """Return a job as plain values. `now` is where it is, or how it ended, as far as that is newer
    than its row; `position` counts from 0.
    """
    job = {**_NOTHING, **row, **now}
    job["checkpoint"] = job["checkpoint"] or job["for_checkpoint"]
    step = (
        state_step(folder)
        if job["kind"] == "training" and (job["state"] not in ALIVE or job["resume"])
        else None
    )
    if job["state"] != "paused":
        job["waiting_for"] = ""
    told = {name: value for name, value in job.items() if name not in _OURS}
    return {
        **told,
        "position": position,
        "resumable": can_resume(job, step),
        "resume_step": step,
        "ended_at": job["finished_at"],
        "tensorboard_dir": _tensorboard(job, folder),
    }


def can_resume(job: Mapping[str, Any], step: int | None) -> bool:
    """A finished run goes on from its last state, any other, where there is none, from its
    beginning.
    """
    return (
        job["kind"] == "training"
        and job["state"] not in ALIVE
        and (job["state"] != "finished" or step is not None)
    )


def _tensorboard(job: Mapping[str, Any], folder: Path) -> str | None:
    place = tensorboard_dir(job["config"], folder) if job["kind"] == "training" else None
    return str(place.absolute()) if place and place.is_dir() else None  # to be typed in any folder
