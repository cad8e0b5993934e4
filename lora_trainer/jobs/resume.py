"""Whether a job that is not running can resume, with which settings, and which columns its row
needs for that; runs/resume.py checks the run itself.
"""

from collections.abc import Callable
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..runs.plan import make_plan
from ..runs.resume import check_resume, state_step
from ..settings.setting import WrittenSettings
from . import lock_file
from .job import JobColumns, JobKind, JobState, JobView
from .output_names import OutputNames
from .settings_service import SettingsReader


class ResumeCheck:
    def __init__(
        self,
        settings: SettingsReader,
        output_names: OutputNames,
        lora_dir: Path,
        job_folder: Callable[[str], Path],
    ) -> None:
        self._settings = settings
        self._output_names = output_names
        self._lora_dir = lora_dir
        self._job_folder = job_folder

    def check(self, job: JobView, changes: WrittenSettings, *, anyway: bool) -> JobColumns:
        """Return the columns to set so that a job resumes or, while it waits, begins with changes.

        Raises `Refused` when it cannot.
        """
        folder = self._job_folder(job["id"])
        if job["state"] != JobState.QUEUED and not job["resumable"]:
            raise Refused(_why_not(job), code=ErrorCode.CANNOT_RESUME)
        if lock_file.is_locked(folder):
            raise Refused(
                f"Another program is working on job {job['id']}. Stop it there first.",
                code=ErrorCode.BUSY,
            )
        if job["kind"] == JobKind.CAPTIONING:
            return {}
        return self._check_run(job, changes, folder, anyway=anyway)

    def _check_run(
        self, job: JobView, changes: WrittenSettings, folder: Path, *, anyway: bool
    ) -> JobColumns:
        config = self._settings.changed(job["config"], changes)
        step = state_step(folder)
        self._output_names.refuse_taken(config, besides=job["id"])
        if step is None:
            make_plan(config, lora_dir=self._lora_dir)
            return {"config": config.to_dict()}
        check_resume(config, self._lora_dir, folder, anyway=anyway)
        return {
            "config": config.to_dict(),
            "resume": "anyway" if anyway else "same",
            "message": f"Waiting to go on at step {step}.",
        }


def _why_not(job: JobView) -> str:
    if job["kind"] == JobKind.CAPTIONING:
        return "Captioning goes on when it is started again: captions that are there are kept."
    if job["state"] == JobState.FINISHED:
        return (
            f"Job {job['id']} has finished, and what it would need to go on is not there any more."
            " Start it again under another name."
        )
    return f"Job {job['id']} is still running."
