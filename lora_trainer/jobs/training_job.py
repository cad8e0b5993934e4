"""A job that trains a LoRA, from its beginning or from where it was: its settings, its figures for
every step.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import yaml

from ..base.contracts import CheckpointId, Host
from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..runs.pipeline import Result, train_lora
from ..runs.progress import ProgressReporter, RunStatus, StepMetrics
from ..runs.resume import state_folder, state_step
from ..settings.config import TrainConfig
from ..settings.setting import WrittenSettings
from ..training.state_files import prune
from .job import JobEnd, JobKind, JobRow, JobState, JobUpdate
from .metrics import Metrics, MetricsRow
from .store import JobStore
from .tensorboard import EventFile
from .worker import Job


class TrainingJob(Job):
    kind = JobKind.TRAINING
    can_pause = True
    memory_advice = (
        "Switch on Save memory (gradient checkpointing), lower the resolution or the batch size, "
        "or close other programs."
    )

    def __init__(self, row: JobRow, host: Host, store: JobStore, folder: Path) -> None:
        """`row` is the job as the store has it; with `resume` it goes on from its newest state."""
        super().__init__(row.id, store, folder)
        self._host = host
        self._values, self._resume = row.config, row.resume
        self._checkpoint = CheckpointId(row.for_checkpoint, row.for_sha256)
        self.from_step = (state_step(folder) or 0) if self._resume else 0
        self._status = RunStatus(
            message="Waiting for the model",
            step=self.from_step,
            state_step=self.from_step,
            total_steps=row.progress.get("total_steps") or 0,
            pictures=row.progress.get("pictures") or 0,
        )
        self._metrics = Metrics()
        self._event_file: EventFile | None = None  # open while the job runs
        self._began_at = time.monotonic()
        self._has_steps = False  # whether this part of the run has finished one

    def metrics(self, since: int = 0) -> list[MetricsRow]:
        return self._metrics.since(since)

    def _figures(self) -> JobUpdate:
        return cast(JobUpdate, self._status.to_json())

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        config = yaml.safe_dump(self._values, allow_unicode=True, sort_keys=False)
        write_atomically(self.folder / "config.yaml", config.encode())
        if self._resume:
            self._metrics.load(self.folder, self.from_step)
        if self._metrics.last:
            self._began_at -= self._metrics.last.seconds
        self._event_file = self._open_event_file()
        with self._metrics.kept_in(self.folder), contextlib.closing(self._event_file):
            yield

    def _open_event_file(self) -> EventFile:
        loras = self._host.lora_dir if self._host.kind == "webui" else None
        folder = tensorboard_dir(self._values, self.folder, loras=loras)
        goes_on = bool(self._resume) or folder.is_dir()
        return EventFile(folder, purge_step=self.from_step + 1 if goes_on else None)

    def _work(self) -> JobEnd:
        self._update_row({"message": "Waiting for the model"})
        self._refuse_other_checkpoint()
        result = train_lora(
            TrainConfig.parse(self._values),
            self._host,
            control=self.control,
            reporter=ProgressReporter(self._on_status, self._on_step),
            folder=self.folder,
            resume=bool(self._resume),
            anyway=self._resume == "anyway",
            checkpoint=self._checkpoint,
        )
        self._status = dataclasses.replace(
            self._status, warnings=result.warnings, waiting_for="", eta_seconds=None
        )
        if not result.stopped:  # one state is enough to add epochs; the others were for a crash
            prune(state_folder(self.folder), keep=1)
        return _ending(result)

    def _refuse_other_checkpoint(self) -> None:
        """Where users can load another checkpoint a run waits for its own; a program that has one
        only will never have it.
        """
        name, loaded = self._checkpoint.name, self._host.model_status().checkpoint
        if not name or name == loaded or self._host.changes_checkpoints or self.from_step:
            return
        raise Refused(
            f"This job is for the checkpoint {name}, and this program was started with"
            f" {loaded or 'none'}. Start it with {name}, and resume the job.",
            code=ErrorCode.NOT_TRAINABLE,
        )

    def _on_status(self, status: RunStatus) -> None:
        self._status = status
        self._save(status.stage)

    def _on_step(self, metrics: StepMetrics, status: RunStatus) -> None:
        """Write down a step's figures. After a roll-back steps are taken again; the first row of
        each stays.
        """
        if not self._has_steps:  # the newest state may have been damaged, and an older one taken
            self._has_steps = True
            self._metrics.cut(metrics.step - 1)
        metrics = metrics._replace(seconds=round(time.monotonic() - self._began_at, 3))
        if self._metrics.add(metrics) and self._event_file:
            self._event_file.add(
                metrics.step,
                loss=metrics.loss,
                loss_average=metrics.loss_average,
                validation_loss=metrics.validation_loss,
                learning_rate=metrics.learning_rate,
                seconds_per_step=status.seconds_per_step,
            )


def tensorboard_dir(config: WrittenSettings, folder: Path, *, loras: Path | None = None) -> Path:
    """Return the folder of a job's TensorBoard files: named after the LoRA within `logging_dir`;
    else within `logs` in `output_dir`, where that is given and not within `loras`, which is for
    LoRAs only; else the job's own.
    """
    own, output_dir = folder / "tensorboard", config.get("output_dir")
    if config.get("logging_dir"):
        return Path(config["logging_dir"]) / config["output_name"]
    if not output_dir or own.is_dir():
        return own
    if loras and Path(output_dir).resolve().is_relative_to(loras.resolve()):
        return own
    return Path(output_dir) / "logs" / config["output_name"]


def _ending(result: Result) -> JobEnd:
    state = JobState.STOPPED if result.stopped else JobState.FINISHED
    message = f"{result.steps} steps"
    if result.output_file is None:
        return JobEnd(state, message)
    return JobEnd(state, message, output_file=str(result.output_file), lora_tag=result.lora_tag)
