"""What interfaces talk to: the host's model, the data sets, and jobs, as plain values. Knows no web framework."""
import csv
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..captioning.labels import LabelSets
from ..captioning.registry import Captioners
from ..captioning.tokens import TokenCounter
from ..core.config import TrainConfig, presets, schema
from ..core.contracts import Host
from ..core.errors import Refused
from ..core.library import Library
from ..core.plan import estimate, make_plan
from .captioning import CaptioningJob, select
from .store import ALIVE, KINDS, JobStore
from .training import METRICS, TrainingJob
from .worker import Job


class TrainingService:
    """One for each process: owns the data folder's database and the one running job."""

    def __init__(self, host: Host, *, allowed_roots: list[Path] | None = None) -> None:
        """`allowed_roots`: folders that paths from users must lie in; None when only this machine can ask."""
        self.host, self._allowed_roots = host, allowed_roots
        self.store = JobStore(host.data_dir / "jobs.sqlite3")
        self.store.interrupt_all()
        self.library = Library(host.data_dir / "datasets", self.check_path, count_tokens=TokenCounter())
        self.labels = LabelSets(host.data_dir / "labels")
        self.captioners = Captioners(host.data_dir, self.labels, self.check_path, host.captioners())
        self._lock = threading.Lock()
        self._job: Job | None = None

    # --- What is there ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        model = self.host.model_status()
        size = self.host.default_size_px if model.trainable else 512
        return {"version": __version__, "host": {"kind": self.host.kind, "version": self.host.version, "default_size_px": size},
                "model": dataclasses.asdict(model), "lora_dir": str(self.host.lora_dir), "data_dir": str(self.host.data_dir),
                "current_job": self.current_job(), "settings": schema(), "problems": []}

    def presets(self) -> list[dict[str, Any]]:
        return presets()

    def loras(self) -> list[dict[str, Any]]:
        """Every LoRA in the LoRA folder: `{name, path, size_bytes, modified_at}`, newest first."""
        files = [path for path in self.host.lora_dir.rglob("*.safetensors") if path.is_file()] if self.host.lora_dir.is_dir() else []
        rows = [{"name": path.stem, "path": str(path), "size_bytes": path.stat().st_size, "modified_at": path.stat().st_mtime} for path in files]
        return sorted(rows, key=lambda row: -row["modified_at"])

    def check_path(self, path: Path) -> None:
        """Raise `Refused` for a path outside the allowed roots, links followed."""
        if self._allowed_roots is None:
            return
        try:
            resolved = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, ValueError):
            resolved = None
        if resolved is None or not any(resolved.is_relative_to(root.resolve()) for root in self._allowed_roots):
            raise Refused("This WebUI can be reached from other machines, so only folders inside "
                          f"{', '.join(str(root) for root in self._allowed_roots)} may be used. Start it with --train-lora-allowed-dirs to add some.",
                          field="train_data_dir", code="forbidden_path")

    # --- Planning and running --------------------------------------------------------------------------------------------

    def plan(self, values: Mapping[str, Any], *, thorough: bool = True) -> dict[str, Any]:
        """Say what a run would do; what makes it impossible is in `errors`, and nothing is raised for it."""
        model = self.host.model_status()
        blocked = [] if model.trainable else [{"code": "not_trainable", "field": None, "message": model.reason}]
        try:
            config = self._parse(values)
            plan = make_plan(config, lora_dir=self.host.lora_dir, thorough=thorough)
        except Refused as error:
            return {"errors": blocked + [{"code": error.code, "field": error.field, "message": error.message}], "warnings": []}
        return {"pictures": len(plan.pictures), "buckets": plan.bucket_counts(), "steps": plan.schedule.total_steps, "epochs": plan.epochs,
                **estimate(plan, config, self.host.peek_unet()), "estimated_seconds": self._estimated_seconds(config, plan.schedule.total_steps),
                "warnings": plan.warnings, "errors": blocked, "output_file": str(plan.output_file), "lora_tag": plan.lora_tag}

    def start(self, values: Mapping[str, Any]) -> str:
        """Start a job and return its id. Raises `Refused`, before anything is touched, for whatever is wrong."""
        config = self._parse(values)
        with self._lock:
            self._refuse_second()
            model = self.host.model_status()
            if not model.trainable:
                raise Refused(model.reason, code="not_trainable")
            make_plan(config, lora_dir=self.host.lora_dir)
            job_id = self.store.add(config.output_name, config.to_dict())
            return self._begin(TrainingJob(job_id, config, self.host, self.store, self.job_folder(job_id)))

    def autocaption(self, dataset: str, captioner: str, *, options: Mapping[str, Any] | None = None, overwrite: bool = False,
                    filenames: Sequence[str] | None = None) -> str:
        """Start a job that writes captions, and return its id. Raises `Refused`, before anything is loaded, for whatever is wrong.

        Without `overwrite` only pictures without a caption, and those whose caption a captioner wrote, get a new one.
        """
        chosen, values = self.captioners.read(captioner, options or {})
        readiness = chosen.readiness(values)
        if not readiness.can_start:
            raise Refused(readiness.needs, field="captioner", code="not_ready")
        selection = select(self.library, dataset, filenames, overwrite=overwrite)
        with self._lock:
            self._refuse_second()
            config = {"dataset": dataset, "captioner": captioner, "options": values, "overwrite": overwrite}
            job_id = self.store.add(dataset, config, kind="captioning")
            return self._begin(CaptioningJob(job_id, chosen, config, selection, self.library, self.host, self.store, self.job_folder(job_id)))

    def _refuse_second(self) -> None:
        if self._job is not None and not self._job.ended:
            raise Refused(f"Job {self._job.job_id} is still running. Wait until it has ended, or stop it.", code="busy")

    def _begin(self, job: Job) -> str:
        self._job = job
        job.start()
        return job.job_id

    def stop(self, job_id: str) -> dict[str, Any]:
        self.job(job_id)
        if self._job is not None and self._job.job_id == job_id:
            self._job.stop()
        return self.job(job_id)

    def wait(self, job_id: str, timeout: float | None = None) -> dict[str, Any]:
        """Wait until a job has ended and return it."""
        if self._job is not None and self._job.job_id == job_id:
            self._job.done.wait(timeout)
        return self.job(job_id)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as it is now; raises `Refused` (code "not_found")."""
        found = self.store.get(job_id)
        if found is None:
            raise Refused(f"There is no job {job_id[:20]!r}.", code="not_found")
        running = self._job
        if running is not None and running.job_id == job_id:
            found.update(running.ended or (running.snapshot() if found["state"] in ALIVE else {}))
        return found

    def jobs(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The newest jobs, of one kind ("training", "captioning") or of all; raises `Refused` for another."""
        if kind is not None and kind not in KINDS:
            raise Refused(f"There are no jobs of the kind {kind[:40]!r}; there are {' and '.join(KINDS)}.", field="kind", code="bad_value")
        return [self.job(job["id"]) for job in self.store.newest(kind=kind)]

    def current_job(self) -> dict[str, Any] | None:
        running = self._job
        return self.job(running.job_id) if running is not None and not running.ended else None

    def metrics(self, job_id: str, since: int = 0) -> list[dict[str, Any]]:
        """Return the figures of each step after `since`, of a running job or from its metrics.csv."""
        self.job(job_id)
        if self._job is not None and self._job.job_id == job_id:
            return self._job.metrics(since)
        return _read_metrics(self.job_folder(job_id) / "metrics.csv")[max(0, since):]

    def job_folder(self, job_id: str) -> Path:
        return self.host.data_dir / "jobs" / job_id

    def _parse(self, values: Mapping[str, Any]) -> TrainConfig:
        """Read a config, turn a data set's name into its folder, and check every path in it."""
        config = TrainConfig.parse(values)
        changes = {}
        if config.train_data_dir:
            changes["train_data_dir"] = str(self.library.resolve(config.train_data_dir))
        for name in ("metadata_path", "output_dir", "base_model", "logging_dir"):
            if value := getattr(config, name):
                changes[name] = str(Path(value).expanduser())
                try:
                    self.check_path(Path(changes[name]))
                except Refused as error:
                    raise Refused(error.message, field=name, code=error.code) from error
        if config.base_model and self.host.kind == "webui":
            raise Refused("In the WebUI the loaded checkpoint is trained. Choose it at the top left and leave Base model empty.", field="base_model",
                          code="bad_value")
        return config.replace(**changes)

    def _estimated_seconds(self, config: TrainConfig, steps: int) -> float | None:
        """Estimate from the last finished job of the same resolution, batch and layers, if there is one."""
        alike = ("resolution", "batch_size", "lora_targets", "gradient_accumulation_steps", "gradient_checkpointing")
        for job in self.store.newest(kind="training"):
            if job.get("seconds_per_step") and all(job["config"].get(name) == getattr(config, name) for name in alike):
                return job["seconds_per_step"] * steps
        return None


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({name: int(row[name]) if name == "step" else float(row[name]) for name in METRICS})
            except (TypeError, ValueError):                                        # the line that was being written when the process died
                break
    return rows
