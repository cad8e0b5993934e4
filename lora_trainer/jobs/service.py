"""The jobs of a data folder: start, steer, resume, delete and describe them. `TrainingService` is
what the API, the page and the command line talk to; it knows no web framework.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__
from ..base.contracts import Host
from ..base.errors import ErrorCode, Refused
from ..base.paths import PathRules
from ..captioning.tokens import TokenCounter
from ..editor.library import Library
from ..interop.presets import OwnPresets, presets_folder
from ..runs.plan import make_plan
from ..runs.resume import state_step
from ..settings.config import in_our_names
from ..settings.setting import SettingValues, WrittenSettings
from . import lock_file
from .caption_service import CaptionService
from .captioning_job import CaptioningJob
from .job import (
    ALIVE,
    JobColumns,
    JobFigures,
    JobKind,
    JobRow,
    JobState,
    JobView,
    NewJob,
    QueueStatus,
    ServiceStatus,
)
from .job_views import position_of, view_job
from .log_file import NAME as LOG_NAME
from .log_file import LogPart, read_log
from .lora_files import files_of
from .metrics import MetricsRow, read_metrics
from .output_names import OutputNames
from .planning import Planner, count_pictures, model_kind
from .presets import Presets
from .queue import JobQueue
from .rescued_loras import move_loras
from .resume import ResumeCheck
from .settings_import import SettingsImport
from .settings_service import SettingsReader
from .storage import DEFAULT_LIMITS, Limits, Storage
from .store import JobStore, database_path, folder_of_job
from .training_job import TrainingJob
from .worker import Job

log = logging.getLogger(__name__)


class TrainingService:
    """One for each process: owns the data folder's database and the queue."""

    def __init__(
        self,
        host: Host,
        *,
        allowed_roots: list[Path] | None = None,
        foreign_roots: list[Path] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`allowed_roots` and `foreign_roots` are those of `PathRules`; `limits` says what is kept
        of finished jobs.
        """
        self.host = host
        self.path_rules = PathRules(allowed_roots, foreign_roots)
        self.store = JobStore(database_path(host.data_dir))
        self.store.interrupt_all(
            is_alive=lambda job_id: lock_file.is_locked(self.job_folder(job_id))
        )
        self.library = Library(
            host.data_dir / "datasets", self.path_rules.check, count_tokens=TokenCounter()
        )
        self.queue = JobQueue(self.store, self._make)
        self.settings = SettingsReader(host.kind, self.library, self.path_rules.check)
        self.settings_import = SettingsImport(host, self.path_rules)
        self.presets = Presets(OwnPresets(presets_folder(host.data_dir)))
        self.captioning = CaptionService(host, self.library, self.path_rules, add_job=self._add_job)
        self._output_names = OutputNames(host.lora_dir, self.store, self.queue)
        self.planner = Planner(host, self.store, self.settings, self._output_names)
        self._resume_check = ResumeCheck(
            self.settings, self._output_names, host.lora_dir, self.job_folder
        )
        self.storage = Storage(
            self.store,
            self.library,
            host.data_dir,
            delete_job=self._delete,
            lock_queue=self.queue.locked,
            path_rules=self.path_rules,
            limits=limits,
        )
        self.storage.tidy()

    def close(self, wait_seconds: float = 5.0) -> None:
        """End with the program: no other job begins, and the running one keeps its progress after
        its current step, if that ends within `wait_seconds`.
        """
        if running := self.queue.close():
            running.control.interrupt()
            if running.is_alive():  # one that was never started has nothing to keep
                running.join(wait_seconds)

    def status(self) -> ServiceStatus:
        model = self.host.model_status()
        size = (model.size_px or self.host.default_size_px) if model.trainable else 512
        return {
            "version": __version__,
            "host": {"kind": self.host.kind, "version": self.host.version, "default_size_px": size},
            "model": dataclasses.asdict(model),
            "lora_dir": str(self.host.lora_dir),
            "data_dir": str(self.host.data_dir),
            "current_job": self.current_job(),
            **self.queue_status(),
            "problems": list(self.store.problems),
        }

    # --- Starting ---------------------------------------------------------------------------------

    def start(self, values: WrittenSettings, *, ahead_of_queue: bool = False) -> str:
        """Put a training job into the queue and return its id.

        `ahead_of_queue` is for a command that leaves with its job: it begins now, and those that
        wait go on waiting. Raises `Refused`, before anything is touched, for whatever is wrong.
        """
        config = self.settings.parse(values)
        model = self.host.model_status()
        if not model.trainable:
            raise Refused(model.reason, code=ErrorCode.NOT_TRAINABLE)
        plan = make_plan(config, lora_dir=self.host.lora_dir)
        figures: JobFigures = {
            "pictures": count_pictures(plan)["pictures"],
            "total_steps": plan.schedule.total_steps,
        }
        job = NewJob(
            config.output_name,
            JobKind.TRAINING,
            config.to_dict(),
            figures,
            checkpoint=model.checkpoint,
            sha256=model.sha256,
            model_kind=model_kind(model),
        )
        with self.queue.locked():
            self._output_names.refuse_taken(config)
            return self._add_job(job, ahead_of_queue=ahead_of_queue)

    def duplicate(self, job_id: str, changes: WrittenSettings | None = None) -> str:
        """Put a job with the settings of another one, and changes, into the queue.

        A LoRA gets the next free name unless one is given. Raises `Refused`.
        """
        row = self._row(job_id)
        if row.kind == JobKind.CAPTIONING:
            return self.captioning.start_again(row.config, changes or {})
        changes = in_our_names(changes or {})
        values = {**row.config, **changes}
        if "output_name" not in changes and not values.get("overwrite"):
            values["output_name"] = self._output_names.free(self.settings.parse(values))
        return self.start(values)

    def _add_job(self, job: NewJob, *, ahead_of_queue: bool = False) -> str:
        with self.queue.locked():
            if ahead_of_queue:
                self.queue.refuse_while_running()
            job_id = self.store.add(
                job.name,
                job.config,
                kind=job.kind,
                checkpoint=job.checkpoint,
                sha256=job.sha256,
                model_kind=job.model_kind,
            )
            self.store.update(job_id, progress=job.figures)
            self.queue.admit(job_id, ahead_of_queue=ahead_of_queue)
        self.storage.tidy()
        return job_id

    def _make(self, row: JobRow) -> Job:
        folder = self.job_folder(row.id)
        if row.kind == JobKind.CAPTIONING:
            captioners = self.captioning.captioners
            return CaptioningJob(row, captioners, self.library, self.host, self.store, folder)
        return TrainingJob(row, self.host, self.store, folder)

    # --- Steering ---------------------------------------------------------------------------------

    def stop(self, job_id: str) -> JobView:
        """End a job after its current step or batch; one that waits is cancelled."""
        job = self.job(job_id)
        if running := self.queue.running_job(job_id):
            running.control.stop()
        elif job["state"] == JobState.QUEUED:
            began = "went on" if job["resume_step"] is not None else "began"
            self.queue.cancel(
                job_id,
                state=JobState.STOPPED,
                message=f"Cancelled before it {began}.",
                finished_at=time.time(),
                resume="",
            )
        return self.job(job_id)

    def pause(self, job_id: str, *, free_memory: bool = False) -> JobView:
        self._running(job_id, "paused").control.pause(free_memory=free_memory)
        return self.job(job_id)

    def snapshot(self, job_id: str) -> JobView:
        """Save the LoRA as it is after the current step, under a name of its own."""
        self._running(job_id, "saved meanwhile").control.take_snapshot()
        return self.job(job_id)

    def resume(
        self,
        job_id: str,
        changes: WrittenSettings | None = None,
        *,
        anyway: bool = False,
        ahead_of_queue: bool = False,
    ) -> JobView:
        """Let a paused job go on; put one that has ended in front of the queue, to go on from its
        newest training state with changed settings.

        `anyway`: also when it would not be quite the same run, for example because captions were
        edited. `ahead_of_queue`: as in `start`. Raises `Refused`.
        """
        if running := self.queue.running_job(job_id):
            if changes:
                raise Refused(
                    "Settings can change when the job has stopped. Stop it, change them, and"
                    " resume it.",
                    code=ErrorCode.BUSY,
                )
            running.control.resume()
            return self.job(job_id)
        self.queue.wait_for_thread(job_id)
        row = self._row(job_id)
        (job,) = self._views(lambda: [row])
        columns = self._resume_check.check(job, changes or {}, anyway=anyway)
        with self.queue.locked():
            if ahead_of_queue:
                self.queue.refuse_while_running()
            self._requeue(row, columns)
            if ahead_of_queue:
                self.queue.admit(job_id, ahead_of_queue=True)
            else:
                self.queue.start()
        return self.job(job_id)

    def _requeue(self, row: JobRow, columns: JobColumns) -> None:
        """Put a job in front of the queue unless it has changed since it was checked."""
        if columns.get("resume") and state_step(self.job_folder(row.id)) is None:
            raise Refused(  # it would begin anew, over what it has learned
                f"The training state of job {row.id} was removed in this moment, so it cannot"
                " go on.",
                code=ErrorCode.CANNOT_RESUME,
            )
        if not self.store.requeue(row.id, row.state, **columns):
            raise Refused(
                f"Job {row.id} was resumed, stopped or deleted by somebody else in this moment."
                " Look at it again.",
                code=ErrorCode.BUSY,
            )

    def changes_since(self, job_id: str, values: WrittenSettings) -> SettingValues:
        """Return the settings in which `values` differ from a job's; raises `Refused` for one that
        cannot change in the middle of a run.
        """
        return self.settings.differences(self.job(job_id)["config"], values)

    def load_checkpoint(self, job_id: str) -> JobView:
        """Load the checkpoint that a job trains back into the host."""
        checkpoint = self.job(job_id)["checkpoint"]
        if not checkpoint:
            raise Refused(
                "It is not known which checkpoint this job trains.", code=ErrorCode.NOT_RUNNING
            )
        self.host.load_checkpoint(checkpoint)
        return self.job(job_id)

    def generate(self, prompt: str, **settings: Any) -> Image.Image:
        """Draw a picture as `Host.generate` does, waiting for its turn; raises `Refused` (code
        "busy") while its turn would not come.
        """
        job = self.current_job()
        if job and _keeps_model_to_itself(job):
            raise Refused(
                "A LoRA is being trained that does not share the model; pictures can be drawn when"
                " that has ended or is paused.",
                code=ErrorCode.BUSY,
            )
        # captioners of the standalone host do not take turns with drawing
        if job and job["kind"] == JobKind.CAPTIONING and self.host.kind == "standalone":
            raise Refused(
                "Captions are being written; pictures can be drawn when that has ended.",
                code=ErrorCode.BUSY,
            )
        return self.host.generate(prompt, **settings)

    def _running(self, job_id: str, what: str) -> Job:
        job, running = self.job(job_id), self.queue.running_job(job_id)
        if running is None:
            raise Refused(
                f"Job {job_id} is not running ({job['state']}), so it cannot be {what}.",
                code=ErrorCode.NOT_RUNNING,
            )
        if not running.can_pause:
            raise Refused(
                f"A {running.kind} job cannot be {what}. Stop it; what is done stays, and starting"
                " it again does the rest.",
                code=ErrorCode.NOT_RUNNING,
            )
        return running

    # --- The queue --------------------------------------------------------------------------------

    def queue_status(self) -> QueueStatus:
        return {"queue_held": self.queue.held, "queued": len(self.store.waiting())}

    def hold_queue(self) -> QueueStatus:
        """Let no other job begin until the queue is started."""
        self.queue.hold()
        return self.queue_status()

    def start_queue(self) -> QueueStatus:
        self.queue.start()
        return self.queue_status()

    def move(self, job_id: str, position: int) -> list[JobView]:
        """Give a job that waits another place, 0 being next, and return the jobs that wait."""
        self.job(job_id)
        with self.queue.locked():
            if job_id not in self.store.waiting():
                raise Refused(
                    f"Job {job_id} does not wait any more, so it cannot be moved.",
                    code=ErrorCode.NOT_RUNNING,
                )
            self.store.move(job_id, max(0, position))
        return [self.job(each) for each in self.store.waiting()]

    # --- Deleting ---------------------------------------------------------------------------------

    def delete(self, job_id: str) -> list[Path]:
        """Remove a job that has ended, with its folder; return the LoRAs that lay only in there,
        where they are now. Raises `Refused`.
        """
        self.path_rules.check_deletion()
        return self._delete(job_id)

    def _delete(self, job_id: str) -> list[Path]:
        self.queue.wait_for_thread(job_id)
        with self.queue.locked():
            if self.job(job_id)["state"] in ALIVE:
                raise Refused(f"Job {job_id} has not ended. Stop it first.", code=ErrorCode.BUSY)
            folder = self.job_folder(job_id)
            moved = move_loras(folder, self.host.lora_dir)
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise Refused(
                    f"The folder {folder} cannot be removed: {error.strerror or error}.",
                    code=ErrorCode.CANNOT_SAVE,
                ) from error
            self.store.delete(job_id)
        for path in moved:
            self._register(path)
        return moved

    def _register(self, path: Path) -> None:
        try:
            self.host.register(path)
        except Exception:  # entry into the host's own code; the file is where it belongs
            log.exception("%s could not be made known", path)

    # --- Looking at jobs --------------------------------------------------------------------------

    def wait(self, job_id: str, timeout: float | None = None) -> JobView:
        """Wait until a job has ended, at most `timeout` seconds, and return it."""
        self.queue.wait(job_id, timeout)
        return self.job(job_id)

    def job(self, job_id: str) -> JobView:
        """Return a job as it is now; raises `Refused` (code "not_found")."""
        return self._views(lambda: [self._row(job_id)])[0]

    def jobs(self, kind: str | None = None) -> list[JobView]:
        """Return the newest jobs, newest first. Raises `Refused` for a kind that does not exist."""
        kinds = [each.value for each in JobKind]
        if kind is not None and kind not in kinds:
            raise Refused(
                f"There are no jobs of the kind {kind[:40]!r}; there are {' and '.join(kinds)}.",
                field="kind",
                code=ErrorCode.BAD_VALUE,
            )
        wanted = JobKind(kind) if kind else None
        return self._views(lambda: self.store.newest(kind=wanted))

    def jobs_of_lora(self, name: str) -> list[JobView]:
        """Return the jobs that train a LoRA of this name, newest first."""
        return self._views(lambda: self.store.named(name))

    def current_job(self) -> JobView | None:
        running = self.queue.running
        return self.job(running.job_id) if running is not None and not running.ended else None

    def metrics(self, job_id: str, since: int = 0) -> list[MetricsRow]:
        """Return the metrics of each step after `since`."""
        self._row(job_id)
        running = self.queue.running
        if running and running.job_id == job_id:
            return running.metrics(since)
        return read_metrics(self.job_folder(job_id), since)

    def log(self, job_id: str, since: int = 0) -> LogPart:
        """Return what a job's log has after byte `since`, at most the last 200 KB."""
        self._row(job_id)
        return read_log(self.job_folder(job_id) / LOG_NAME, since)

    def files(self, job_id: str) -> list[Path]:
        """Return the LoRA of a job and its snapshots with their cards and previews, as far as they
        still exist and may be read.
        """
        job = self.job(job_id)
        if job["kind"] != JobKind.TRAINING:
            return []
        files = files_of(job, self.host.lora_dir)
        return [path for path in files if self.path_rules.permits(path)]

    def job_folder(self, job_id: str) -> Path:
        return folder_of_job(self.host.data_dir, job_id)

    def _row(self, job_id: str) -> JobRow:
        row = self.store.get(job_id)
        if row is None:
            raise Refused(f"There is no job {job_id[:20]!r}.", code=ErrorCode.NOT_FOUND)
        return row

    def _views(self, read_rows: Callable[[], Sequence[JobRow]]) -> list[JobView]:
        """Return the rows with what the running job knows.

        The running job is asked for before its row is read: when it ends in between, what it knows
        is the newer of the two.
        """
        running = self.queue.running
        if running is not None and running.ended:
            running = None
        rows, waiting = read_rows(), self.store.waiting()
        return [self._view(row, running, waiting) for row in rows]

    def _view(self, row: JobRow, running: Job | None, waiting: Sequence[str]) -> JobView:
        folder = self.job_folder(row.id)
        if running is not None and running.job_id == row.id:
            current = running.current()
        else:
            current = self.queue.unsaved_end(row.id)
        if not current and not self.queue.owns(row.id) and lock_file.is_abandoned(row, folder):
            current = {"state": JobState.INTERRUPTED}
        position = position_of(row.id, waiting) if row.state == JobState.QUEUED else None
        return view_job(row, current, folder, position=position)


def _keeps_model_to_itself(job: JobView) -> bool:
    return (
        job["kind"] == JobKind.TRAINING
        and job["config"].get("sharing") == "exclusive"
        and job["state"] in (JobState.PREPARING, JobState.TRAINING)
    )
