"""A job that trains a LoRA, from its beginning or from where it was: its settings, its figures for
every step.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..base.contracts import Host, Progress
from ..base.errors import Refused
from ..base.files import write_atomically
from ..runs.pipeline import Result, train_lora
from ..runs.resume import state_folder, state_step
from ..settings.config import TrainConfig
from ..training.state_files import prune
from .job import JobKind, JobRow
from .metrics import SECONDS, Metrics
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
        self._values, self._resume, self._host, self._metrics = (
            row.config,
            row.resume,
            host,
            Metrics(),
        )
        self._checkpoint, self._sha256 = row.for_checkpoint, row.for_sha256
        self.from_step = (state_step(folder) or 0) if self._resume else 0
        self._progress = Progress(
            "preparing",
            "Waiting for the model",
            step=self.from_step,
            state_step=self.from_step,
            total_steps=row.progress.get("total_steps") or 0,
            pictures=row.progress.get("pictures") or 0,
        )
        self._began_at, self._going = time.monotonic(), False

    def metrics(self, since: int = 0) -> list[dict[str, Any]]:
        return self._metrics.since(since)

    def _figures(self) -> dict[str, Any]:
        return dataclasses.asdict(self._progress)

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        write_atomically(
            self.folder / "config.yaml",
            yaml.safe_dump(self._values, allow_unicode=True, sort_keys=False).encode(),
        )
        if self._resume:
            self._metrics.load(self.folder, self.from_step)
            self._began_at -= self._metrics.last[SECONDS] if self._metrics.last else 0.0
        place = tensorboard_dir(
            self._values,
            self.folder,
            loras=self._host.lora_dir if self._host.kind == "webui" else None,
        )
        self._events = EventFile(
            place, purge_step=self.from_step + 1 if self._resume or place.is_dir() else None
        )
        with self._metrics.kept_in(self.folder), contextlib.closing(self._events):
            yield

    def _work(self) -> Mapping[str, Any]:
        self._update_row(message="Waiting for the model")
        self._refuse_other_checkpoint()
        result = train_lora(
            TrainConfig.parse(self._values),
            self._host,
            control=self.control,
            on_progress=self._report,
            folder=self.folder,
            resume=bool(self._resume),
            anyway=self._resume == "anyway",
            checkpoint=self._checkpoint,
            checkpoint_sha256=self._sha256,
        )
        self._progress = dataclasses.replace(
            self._progress, remarks=tuple(result.remarks), waiting_for="", eta_seconds=None
        )
        if not result.stopped:
            prune(
                state_folder(self.folder), keep=1
            )  # for more epochs; the one before was for a crash
        return _ending(result)

    def _refuse_other_checkpoint(self) -> None:
        """Where users can load another checkpoint a run waits for its own; a program that has one
        only will never have it.
        """
        loaded = self._host.model_status().checkpoint
        if (
            self._checkpoint
            and loaded != self._checkpoint
            and not self._host.changes_checkpoints
            and not self.from_step
        ):
            raise Refused(
                f"This job is for the checkpoint {self._checkpoint}, and this program was started"
                f" with {loaded or 'none'}. Start it with {self._checkpoint}, and resume the job.",
                code="not_trainable",
            )

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        if progress.stage == "training" and progress.loss is not None:
            self._note(progress)
        self._save(progress.stage if progress.stage in ("preparing", "paused") else "training")

    def _note(self, progress: Progress) -> None:
        """Write down a step's figures. Steps may be reported again, with the same values, and then
        the first row stays.
        """
        if not self._going:  # the newest state may have been damaged, and an older one taken
            self._going = True
            self._metrics.cut(progress.step - 1)
        measured = (
            progress.validation_loss
            if progress.validation_loss != self._metrics.validation_loss
            else None
        )  # it tells the newest at every step
        row = (
            progress.step,
            progress.loss,
            progress.loss_average,
            progress.learning_rate,
            round(time.monotonic() - self._began_at, 3),
            measured,
        )
        if self._metrics.add(row):
            self._events.add(
                progress.step,
                loss=progress.loss,
                loss_average=progress.loss_average,
                validation_loss=measured,
                learning_rate=progress.learning_rate,
                seconds_per_step=progress.seconds_per_step,
            )


def tensorboard_dir(config: Mapping[str, Any], folder: Path, *, loras: Path | None = None) -> Path:
    """Return where a job's event files are: by the LoRA's name under the log folder or, where only
    an output folder is given, in `logs` there; else in the job's own folder, and so for an output
    folder within `loras`, where only LoRAs should be.
    """
    own, output = folder / "tensorboard", config.get("output_dir")
    if config.get("logging_dir"):
        return Path(config["logging_dir"]) / config["output_name"]
    if (
        not output
        or own.is_dir()
        or (loras and Path(output).resolve().is_relative_to(loras.resolve()))
    ):
        return own
    return Path(output) / "logs" / config["output_name"]


def _ending(result: Result) -> dict[str, Any]:
    saved = (
        {"lora_tag": result.lora_tag, "output_file": str(result.output_file)}
        if result.output_file
        else {}
    )
    return {
        "state": "stopped" if result.stopped else "finished",
        "message": f"{result.steps} steps",
        **saved,
    }
