"""Whether a job that is not running can go on, with which settings, and what its row needs for
that; `core.resuming` judges the run itself.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import Refused
from ..runs.plan import make_plan
from ..runs.resume import check_resume, state_step
from . import lock_file
from .output_names import Names
from .settings_service import Settings


class Resuming:
    def __init__(
        self, settings: Settings, names: Names, lora_dir: Path, job_folder: Callable[[str], Path]
    ) -> None:
        self._settings, self._names, self._lora_dir, self._job_folder = (
            settings,
            names,
            lora_dir,
            job_folder,
        )

    def check(
        self, job: Mapping[str, Any], changes: Mapping[str, Any], *, anyway: bool
    ) -> dict[str, Any]:
        """Return the columns that a job's row needs to go on or, while it waits, to begin; raises
        `Refused` when it cannot.
        """
        folder = self._job_folder(job["id"])
        if job["state"] != "queued" and not job["resumable"]:
            raise Refused(_why_not(job), code="cannot_resume")
        if lock_file.is_claimed(folder):
            raise Refused(
                f"Another program is working on job {job['id']}. Stop it there first.", code="busy"
            )
        return (
            {}
            if job["kind"] == "captioning"
            else self._check_run(job, changes, folder, anyway=anyway)
        )

    def _check_run(
        self, job: Mapping[str, Any], changes: Mapping[str, Any], folder: Path, *, anyway: bool
    ) -> dict[str, Any]:
        config, step = self._settings.changed(job["config"], changes), state_step(folder)
        self._names.refuse_taken(config, besides=job["id"])
        if step is None:
            make_plan(config, lora_dir=self._lora_dir)
            return {"config": config.to_dict()}
        check_resume(config, self._lora_dir, folder, anyway=anyway)
        return {
            "config": config.to_dict(),
            "resume": "anyway" if anyway else "same",
            "message": f"Waiting to go on at step {step}.",
        }


def _why_not(job: Mapping[str, Any]) -> str:
    if job["kind"] == "captioning":
        return "Captioning goes on when it is started again: captions that are there are kept."
    if job["state"] == "finished":
        return (
            f"Job {job['id']} has finished, and what it would need to go on is not there any more."
            " Start it again under another name."
        )
    return f"Job {job['id']} is still running."
