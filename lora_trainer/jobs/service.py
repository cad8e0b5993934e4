"""What interfaces talk to: the host's model, the data sets, and jobs, as plain values. Knows no web
framework.
"""

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .. import __version__
from ..base.contracts import Host, ModelStatus
from ..base.errors import Refused
from ..base.paths import check_inside, check_path_length, foreign_host
from ..captioning.labels import LabelSets
from ..captioning.registry import Captioners
from ..captioning.tokens import TokenCounter
from ..editor.library import Library
from ..interop.presets import OwnPresets, presets_folder
from ..runs.plan import Plan, check_space, estimate, make_plan
from ..runs.plan_warnings import remarks_on_model
from ..runs.resume import state_step
from ..settings.config import TrainConfig, in_our_names
from ..settings.remedies import Remedy, advice_in
from . import lock_file, settings_import
from .captioning_job import CaptioningJob, read_ready, select
from .job_files import files_of
from .log_file import NAME as LOG_NAME
from .log_file import read_log
from .metrics import read_metrics
from .names import Names
from .presets import PresetShelf
from .queue import JobQueue
from .reports import describe
from .rescued_loras import move_loras
from .resume import Resuming
from .settings_form import form
from .settings_service import Settings
from .storage import Limits, Storage
from .store import ALIVE, KINDS, JobStore
from .tensorboard import find_tensorboard
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
        limits: Limits = Limits(),  # noqa: B008
    ) -> None:
        """`allowed_roots`: folders that paths from users must lie in; None when only this machine
        can ask. `foreign_roots`: those for requests under a foreign host name, which may be a page
        of another site by DNS rebinding; None where such requests do not get here. `limits`: what
        is kept of finished jobs.
        """
        self.host, self._allowed_roots, self._foreign_roots = host, allowed_roots, foreign_roots
        self.store = JobStore(host.data_dir / "jobs.sqlite3")
        self.store.interrupt_all(lambda job_id: lock_file.is_claimed(self.job_folder(job_id)))
        self.library = Library(
            host.data_dir / "datasets", self.check_path, count_tokens=TokenCounter()
        )
        self.labels = LabelSets(host.data_dir / "labels")
        self.captioners = Captioners(host.data_dir, self.labels, self.check_path, host.captioners())
        self.queue = JobQueue(self.store, self._make)
        self._names = Names(host.lora_dir, self.store, self.queue)
        self.presets = PresetShelf(OwnPresets(presets_folder(host.data_dir)))
        self._settings = Settings(host.kind, self.library, self.check_path)
        self._form: dict[str, Any] | None = None
        self._resuming = Resuming(self._settings, self._names, host.lora_dir, self.job_folder)
        self._storage = Storage(
            self.store, self.library, host.data_dir, delete=self._delete, limits=limits
        )
        self._tidy()

    def close(self, wait_seconds: float = 5.0) -> None:
        """The program ends: no other job begins, and the running one keeps its progress after the
        step it is in, if that comes soon.
        """
        if running := self.queue.close():
            running.control.interrupt()
            if running.is_alive():  # one that was never started has nothing to keep
                running.join(wait_seconds)

    # --- What is there ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
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

    def form(self) -> dict[str, Any]:
        """The settings, for a page to show: `groups` and `settings`."""
        if self._form is None:
            self._form = form()  # packages come and go with a restart only
        return self._form

    def loras(self) -> list[dict[str, Any]]:
        """Every LoRA in the LoRA folder: `{name, path, size_bytes, modified_at}`, newest first."""
        files = (
            [path for path in self.host.lora_dir.rglob("*.safetensors") if path.is_file()]
            if self.host.lora_dir.is_dir()
            else []
        )
        rows = [
            {
                "name": path.stem,
                "path": str(path),
                "size_bytes": path.stat().st_size,
                "modified_at": path.stat().st_mtime,
            }
            for path in files
        ]
        return sorted(rows, key=lambda row: -row["modified_at"])

    def check_path(self, path: Path) -> None:
        """Raise `Refused` for a path outside the allowed roots, links followed, and for one that
        cannot be.
        """
        check_path_length(path)
        if self._allowed_roots is not None:
            check_inside(path, self._allowed_roots)
        elif self._foreign_roots is not None and (name := foreign_host()):
            check_inside(
                path,
                self._foreign_roots,
                because=f"This WebUI was asked for as {name}, which is not this machine's name",
            )

    def _refuse_foreign(self) -> None:
        """Raise `Refused` for what cannot be taken back, where a page of another site could be
        asking by DNS rebinding.
        """
        if (
            self._allowed_roots is None
            and self._foreign_roots is not None
            and (name := foreign_host())
        ):
            raise Refused(
                f"This WebUI was asked for as {name}, which is not this machine's name, so nothing"
                " is removed for good. Open it on the machine itself, as http://127.0.0.1 with its"
                " port.",
                code="forbidden_path",
            )

    # --- Settings from elsewhere ------------------------------------------------------------------

    def import_settings(self, filename: str, file: BinaryIO) -> dict[str, Any]:
        """Read settings from an uploaded file: `{settings, assumed, left_out: [{key, value,
        reason}], source, filename}`. Raises `Refused`.
        """
        return self._for_this_host(settings_import.read_upload(filename, file))

    def settings_of_lora(self, name: str) -> dict[str, Any]:
        """Do the same for a LoRA of the LoRA folder, by its name. Raises `Refused`."""
        path = next((Path(lora["path"]) for lora in self.loras() if lora["name"] == name), None)
        if path is None:
            raise Refused(
                f"There is no LoRA {name[:80]!r} in {self.host.lora_dir}.",
                field="lora",
                code="not_found",
            )
        self.check_path(path)
        return self._for_this_host({**settings_import.read(path), "filename": path.name})

    def _for_this_host(self, found: dict[str, Any]) -> dict[str, Any]:
        """In the WebUI the loaded checkpoint is trained: say which one the file names, and take
        over all else.
        """
        settings = dict(found["settings"])
        if self.host.kind != "webui" or not (named := settings.pop("base_model", "")):
            return found
        reason = (
            "the checkpoint that is loaded is trained: load"
            f" {Path(named.replace(chr(92), '/')).name} at the top left, or one of its kind"
        )
        return {
            **found,
            "settings": settings,
            "left_out": [
                *found["left_out"],
                {"key": "base_model", "value": named, "reason": reason},
            ],
        }

    def export_settings(self, values: Mapping[str, Any]) -> str:
        """Return settings as YAML that the command line and the page read again, with a data set's
        name turned into its folder. Raises `Refused`.
        """
        return self._settings.parse(values).to_yaml()

    # --- Planning and starting --------------------------------------------------------------------

    def plan(self, values: Mapping[str, Any], *, thorough: bool = True) -> dict[str, Any]:
        """Say what a run would do; what makes it impossible is in `errors`, and nothing is raised
        for it.

        `advice` has the changes of settings that end a warning; an error has its own as `remedies`.
        """
        model = self.host.model_status()
        blocked = (
            []
            if model.trainable
            else [{"code": "not_trainable", "field": None, "message": model.reason}]
        )
        config = None
        try:
            config = self._settings.parse(values)
            plan = make_plan(config, lora_dir=self.host.lora_dir, thorough=thorough)
            self._names.refuse_taken(config)
        except Refused as error:
            return {"errors": [*blocked, self._told(error, config)], "warnings": [], "advice": []}
        needed = estimate(plan, config, self.host.peek_parts())
        try:
            check_space(plan.output_file, needed["file_bytes"] or 0)
        except Refused as error:
            blocked.append(self._told(error, config))
        warnings = plan.warnings + remarks_on_model(config, model)
        return {
            **_counts(plan),
            "buckets": plan.bucket_counts(),
            "steps": plan.schedule.total_steps,
            "epochs": plan.epochs,
            **needed,
            "estimated_seconds": self._estimated_seconds(config, plan.schedule.total_steps, model),
            "warnings": warnings,
            "advice": advice_in(warnings),
            "errors": blocked,
            "output_file": str(plan.output_file),
            "lora_tag": plan.lora_tag,
        }

    def _told(self, error: Refused, config: TrainConfig | None) -> dict[str, Any]:
        """Describe a refusal, with what would end it where that is known."""
        remedies = error.details.get("remedies", [])
        if config and error.code == "name_taken":
            name = self._names.free(config)
            remedies = [Remedy(f"Call it {name}", {"output_name": name}).described()]
        told = {"code": error.code, "field": error.field, "message": error.message}
        return {**told, "remedies": remedies} if remedies else told

    def start(self, values: Mapping[str, Any], *, ahead_of_queue: bool = False) -> str:
        """Put a job into the queue and return its id. Raises `Refused`, before anything is touched,
        for whatever is wrong.

        `ahead_of_queue` is for a command that leaves with its job: it begins now, and those that
        wait go on waiting.
        """
        config = self._settings.parse(values)
        model = self.host.model_status()
        if not model.trainable:
            raise Refused(model.reason, code="not_trainable")
        plan = make_plan(config, lora_dir=self.host.lora_dir)
        with self.queue.unchanged():
            self._names.refuse_taken(config)
            return self._admit(
                config.output_name,
                config.to_dict(),
                kind="training",
                ahead_of_queue=ahead_of_queue,
                checkpoint=model.checkpoint,
                sha256=model.sha256,
                model_kind=_kind_of(model),
                figures={
                    "pictures": _counts(plan)["pictures"],
                    "total_steps": plan.schedule.total_steps,
                },
            )

    def autocaption(
        self,
        dataset: str,
        captioner: str,
        *,
        options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        filenames: Sequence[str] | None = None,
    ) -> str:
        """Put a job that writes captions into the queue, and return its id. Raises `Refused`,
        before anything is loaded, for whatever is wrong.

        Without `overwrite` only pictures without a caption, and those whose caption a captioner
        wrote, get a new one; which those are is seen when the job begins.
        """
        _, values = read_ready(self.captioners, captioner, options or {})
        selection = select(self.library, dataset, filenames, overwrite=overwrite)
        config = {
            "dataset": dataset,
            "captioner": captioner,
            "options": values,
            "overwrite": overwrite,
            "filenames": None if filenames is None else list(filenames),
        }
        return self._admit(
            dataset, config, kind="captioning", figures={"pictures": len(selection.pictures)}
        )

    def duplicate(self, job_id: str, changes: Mapping[str, Any] | None = None) -> str:
        """Put a job with the settings of another one, and changes, into the queue; a LoRA gets the
        next free name unless one is given.
        """
        job = self.job(job_id)
        changes = in_our_names(changes or {}) if job["kind"] == "training" else changes or {}
        values = {**job["config"], **changes}
        if job["kind"] == "captioning":
            return self.autocaption(
                **{name: values[name] for name in ("dataset", "captioner", "options", "overwrite")},
                filenames=values.get("filenames"),
            )
        if "output_name" not in changes and not values.get("overwrite"):
            values["output_name"] = self._names.free(self._settings.parse(values))
        return self.start(values)

    def _admit(
        self,
        name: str,
        config: Mapping[str, Any],
        *,
        kind: str,
        ahead_of_queue: bool = False,
        checkpoint: str = "",
        sha256: str | None = None,
        model_kind: str = "",
        figures: Mapping[str, int],
    ) -> str:
        """Write a job down, with what is known of its size, and let it begin when its turn
        comes.
        """
        with self.queue.unchanged():
            if ahead_of_queue:
                self.queue.refuse_second()
            job_id = self.store.add(
                name, config, kind=kind, checkpoint=checkpoint, sha256=sha256, model_kind=model_kind
            )
            self.store.update(job_id, progress=figures)
            self.queue.admit(job_id, ahead_of_queue=ahead_of_queue)
        self._tidy()
        return job_id

    def _make(self, row: Mapping[str, Any]) -> Job:
        folder = self.job_folder(row["id"])
        if row["kind"] == "captioning":
            return CaptioningJob(row, self.captioners, self.library, self.host, self.store, folder)
        return TrainingJob(row, self.host, self.store, folder)

    # --- Steering ---------------------------------------------------------------------------------

    def stop(self, job_id: str) -> dict[str, Any]:
        """End a job after what it is in the middle of; one that waits is cancelled."""
        job = self.job(job_id)
        if running := self.queue.job(job_id):
            running.control.stop()
        elif job["state"] == "queued":
            began = "went on" if job["resume_step"] is not None else "began"
            self.queue.cancel(
                job_id,
                state="stopped",
                message=f"Cancelled before it {began}.",
                finished_at=time.time(),
                resume="",
            )
        return self.job(job_id)

    def pause(self, job_id: str, *, free_memory: bool = False) -> dict[str, Any]:
        self._running(job_id, "paused").control.pause(free_memory=free_memory)
        return self.job(job_id)

    def snapshot(self, job_id: str) -> dict[str, Any]:
        """Save the LoRA as it is after the current step, beside the one that is to come."""
        self._running(job_id, "saved meanwhile").control.take_snapshot()
        return self.job(job_id)

    def resume(
        self,
        job_id: str,
        changes: Mapping[str, Any] | None = None,
        *,
        anyway: bool = False,
        ahead_of_queue: bool = False,
    ) -> dict[str, Any]:
        """Let a paused job go on; put one that has ended in front of the queue, to go on from its
        newest state with changed settings.

        `anyway`: also when it would not be quite the same run, for example because captions were
        edited. `ahead_of_queue`: as in `start`.
        """
        if running := self.queue.job(job_id):
            if changes:
                raise Refused(
                    "Settings can change when the job has stopped. Stop it, change them, and"
                    " resume it.",
                    code="busy",
                )
            running.control.resume()
            return self.job(job_id)
        self.queue.settle(job_id)
        row = self._row(job_id)
        values = self._resuming.check(
            self._describe(row, self.store.waiting()), changes or {}, anyway=anyway
        )
        with self.queue.unchanged():
            if ahead_of_queue:
                self.queue.refuse_second()
            if (
                values.get("resume") and state_step(self.job_folder(job_id)) is None
            ):  # it would begin anew, over what it has learned
                raise Refused(
                    f"The training state of job {job_id} was removed in this moment, so it cannot"
                    " go on.",
                    code="cannot_resume",
                )
            if not self.store.queue(job_id, row["state"], **values):
                raise Refused(
                    f"Job {job_id} was resumed, stopped or deleted by somebody else in this moment."
                    " Look at it again.",
                    code="busy",
                )
            self.queue.admit(job_id, ahead_of_queue=True) if ahead_of_queue else self.queue.start()
        return self.job(job_id)

    def changes_since(self, job_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings in which `values` differ from a job's; raises `Refused` for one that
        cannot change in the middle of a run.
        """
        return self._settings.differences(self.job(job_id)["config"], values)

    def load_checkpoint(self, job_id: str) -> dict[str, Any]:
        """Load the checkpoint that a job trains back into the host."""
        checkpoint = self.job(job_id)["checkpoint"]
        if not checkpoint:
            raise Refused("It is not known which checkpoint this job trains.", code="not_running")
        self.host.load_checkpoint(checkpoint)
        return self.job(job_id)

    def generate(self, prompt: str, **settings: Any) -> Any:
        """Draw a picture as `Host.generate` does, waiting for its turn; raises `Refused` (code
        "busy") while its turn would not come.
        """
        job = self.current_job()
        if (
            job
            and job["kind"] == "training"
            and job["config"].get("sharing") == "exclusive"
            and job["state"] in ("preparing", "training")
        ):
            raise Refused(
                "A LoRA is being trained that does not share the model; pictures can be drawn when"
                " that has ended or is paused.",
                code="busy",
            )
        if (
            job and job["kind"] == "captioning" and self.host.kind == "standalone"
        ):  # whose turns keep nobody from drawing at the same time
            raise Refused(
                "Captions are being written; pictures can be drawn when that has ended.",
                code="busy",
            )
        return self.host.generate(prompt, **settings)

    def _running(self, job_id: str, what: str) -> Job:
        job, running = self.job(job_id), self.queue.job(job_id)
        if running is None:
            raise Refused(
                f"Job {job_id} is not running ({job['state']}), so it cannot be {what}.",
                code="not_running",
            )
        if not running.can_pause:
            raise Refused(
                f"A {running.kind} job cannot be {what}. Stop it; what is done stays, and starting"
                " it again does the rest.",
                code="not_running",
            )
        return running

    # --- The queue --------------------------------------------------------------------------------

    def queue_status(self) -> dict[str, Any]:
        return {"queue_held": self.queue.held, "queued": len(self.store.waiting())}

    def hold_queue(self) -> dict[str, Any]:
        """Let no other job begin until the queue is started."""
        self.queue.hold()
        return self.queue_status()

    def start_queue(self) -> dict[str, Any]:
        self.queue.start()
        return self.queue_status()

    def move(self, job_id: str, position: int) -> list[dict[str, Any]]:
        """Give a job that waits another place, 0 being next, and return the jobs that wait."""
        self.job(job_id)
        with self.queue.unchanged():
            if job_id not in self.store.waiting():
                raise Refused(
                    f"Job {job_id} does not wait any more, so it cannot be moved.",
                    code="not_running",
                )
            self.store.move(job_id, max(0, position))
        return [self.job(each) for each in self.store.waiting()]

    def delete(self, job_id: str) -> list[Path]:
        """Remove a job that has ended, with its folder; its LoRA stays, and LoRAs that are only in
        the folder are moved to where this returns.
        """
        self._refuse_foreign()
        return self._delete(job_id)

    def _delete(self, job_id: str) -> list[Path]:
        self.queue.settle(job_id)
        with self.queue.unchanged():
            if self.job(job_id)["state"] in ALIVE:
                raise Refused(f"Job {job_id} has not ended. Stop it first.", code="busy")
            folder = self.job_folder(job_id)
            moved = move_loras(folder, self.host.lora_dir)
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise Refused(
                    f"The folder {folder} cannot be removed: {error.strerror or error}.",
                    code="cannot_save",
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

    # --- The disk ---------------------------------------------------------------------------------

    def storage(self) -> dict[str, Any]:
        """Say what takes how much of the disk, as `Storage.report` does."""
        return self._storage.report()

    def clear_storage(self, what: str, *, keep: int = 0) -> dict[str, Any]:
        """Remove "trash", "states" of finished jobs, "models" or "jobs" that finished but the
        newest `keep`: `{count, bytes, problems}`. LoRAs stay.
        """
        self._refuse_foreign()
        with self.queue.unchanged() if what in ("states", "jobs") else contextlib.nullcontext():
            return self._storage.clear(what, keep=keep)

    def files(self, job_id: str) -> list[Path]:
        """Return the LoRA of a job and its snapshots with their cards and previews, as far as they
        are there and may be read.
        """
        job = self.job(job_id)
        files = files_of(job, self.host.lora_dir) if job["kind"] == "training" else []
        return [path for path in files if self._may_be_read(path)]

    def _may_be_read(self, path: Path) -> bool:
        try:
            self.check_path(path)
        except Refused:
            return False
        return True

    def tensorboard(self) -> dict[str, Any]:
        """Return `{url}` of a TensorBoard that runs on this machine, None where there is none or
        where others than this machine can ask or do.
        """
        return {
            "url": (
                find_tensorboard() if self._allowed_roots is None and not foreign_host() else None
            )
        }

    def _tidy(self) -> None:
        try:
            with self.queue.unchanged():
                self._storage.tidy()
        except Exception:  # where jobs meet the disk; no job is worth less for it
            log.exception("old jobs could not be cleared away")

    # --- What is told of jobs ---------------------------------------------------------------------

    def wait(self, job_id: str, timeout: float | None = None) -> dict[str, Any]:
        """Wait until a job has ended and return it."""
        self.queue.wait(job_id, timeout)
        return self.job(job_id)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as it is now; raises `Refused` (code "not_found")."""
        return self._describe(self._row(job_id), self.store.waiting())

    def jobs(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The newest jobs, of one kind ("training", "captioning") or of all; raises `Refused` for
        another.
        """
        if kind is not None and kind not in KINDS:
            raise Refused(
                f"There are no jobs of the kind {kind[:40]!r}; there are {' and '.join(KINDS)}.",
                field="kind",
                code="bad_value",
            )
        waiting = self.store.waiting()
        return [self._describe(row, waiting) for row in self.store.newest(kind=kind)]

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the jobs that train a LoRA of this name, newest first."""
        waiting = self.store.waiting()
        return [self._describe(row, waiting) for row in self.store.named(name)]

    def current_job(self) -> dict[str, Any] | None:
        running = self.queue.running
        return self.job(running.job_id) if running is not None and not running.ended else None

    def metrics(self, job_id: str, since: int = 0) -> list[dict[str, Any]]:
        """Return the figures of each step after `since`, of a running job or from its
        metrics.csv.
        """
        self.job(job_id)
        running = self.queue.running
        return (
            running.metrics(since)
            if running and running.job_id == job_id
            else read_metrics(self.job_folder(job_id), since)
        )

    def log(self, job_id: str, since: int = 0) -> dict[str, Any]:
        """Return `{text, next}`: what a job's log says after byte `since`, at most the last 200
        KB.
        """
        self.job(job_id)
        return read_log(self.job_folder(job_id) / LOG_NAME, since)

    def job_folder(self, job_id: str) -> Path:
        return self.host.data_dir / "jobs" / job_id

    def _row(self, job_id: str) -> dict[str, Any]:
        row = self.store.get(job_id)
        if row is None:
            raise Refused(f"There is no job {job_id[:20]!r}.", code="not_found")
        return row

    def _describe(self, row: Mapping[str, Any], waiting: Sequence[str]) -> dict[str, Any]:
        running, folder = self.queue.job(row["id"]), self.job_folder(row["id"])
        now = running.now() if running else self.queue.end_of(row["id"])
        if not now and not self.queue.is_ours(row["id"]) and lock_file.is_lost(row, folder):
            now = {"state": "interrupted"}
        position = (
            waiting.index(row["id"]) if row["state"] == "queued" and row["id"] in waiting else None
        )
        return describe(row, now, folder, position=position)

    def _estimated_seconds(
        self, config: TrainConfig, steps: int, model: ModelStatus
    ) -> float | None:
        """Estimate from the last finished job of the same resolution, batch and layers on a
        checkpoint of this kind, if there is one.
        """
        alike = (
            "resolution",
            "extra_resolutions",
            "batch_size",
            "lora_targets",
            "gradient_accumulation_steps",
            "gradient_checkpointing",
            "train_text_encoder",
        )
        for job in self.store.newest(kind="training"):
            before = {
                "train_text_encoder": False,
                "extra_resolutions": "",
                **job["config"],
            }  # older ones do not say
            same = (
                job["for_kind"] == _kind_of(model)
                if job["for_kind"]
                else job["for_checkpoint"] == model.checkpoint
            )
            if (
                same
                and job["state"] == "finished"
                and job.get("seconds_per_step")
                and all(before.get(name) == getattr(config, name) for name in alike)
            ):
                return job["seconds_per_step"] * steps
        return None


def _kind_of(model: ModelStatus) -> str:
    """Return what decides, of a checkpoint, how long a step takes."""
    return f"{model.family} {model.variant} {model.size_px}" if model.trainable else ""


def _counts(plan: Plan) -> dict[str, Any]:
    """Return how many pictures a run learns from, how many of others keep it from forgetting, how
    many are only measured, and in which resolutions.
    """
    return {
        "pictures": plan.count("train"),
        "regularisation_pictures": plan.count("regularisation"),
        "validation_pictures": plan.count("validation"),
        "resolutions": list(dict.fromkeys(plan.resolutions)),
    }
