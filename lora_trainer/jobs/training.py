"""A job that trains a LoRA: its settings, its figures for every step."""
import contextlib
import csv
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.config import TrainConfig
from ..core.contracts import Host, Progress
from ..core.pipeline import train_lora
from .store import JobStore
from .worker import Job

METRICS = ("step", "loss", "loss_average", "learning_rate", "seconds")


class TrainingJob(Job):
    kind = "training"
    memory_advice = ("Switch on Save memory (gradient checkpointing), lower the resolution or the batch size, "
                     "or close other programs that use the GPU.")

    def __init__(self, job_id: str, config: TrainConfig, host: Host, store: JobStore, folder: Path) -> None:
        super().__init__(job_id, store, folder)
        self._config, self._host, self._rows, self._progress = config, host, [], Progress("preparing", "Waiting for the model")
        self._began_at = time.monotonic()

    def metrics(self, since: int = 0) -> list[dict[str, Any]]:
        return [dict(zip(METRICS, row)) for row in list(self._rows)[max(0, since):]]

    def _figures(self) -> dict[str, Any]:
        return dataclasses.asdict(self._progress)

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        (self.folder / "config.yaml").write_text(self._config.to_yaml(), encoding="utf-8")
        with open(self.folder / "metrics.csv", "w", newline="", encoding="utf-8") as self._metrics_file:
            self._metrics = csv.writer(self._metrics_file)
            self._metrics.writerow(METRICS)
            yield

    def _work(self) -> Mapping[str, Any]:
        self._tell(state="preparing", message="Waiting for the model")
        result = train_lora(self._config, self._host, on_progress=self._report, should_stop=self._stop_asked.is_set)
        return {"state": "stopped" if result.stopped else "finished", "message": f"{result.steps} steps",
                "lora_tag": result.lora_tag if result.output_file else None, "output_file": str(result.output_file) if result.output_file else None}

    def _report(self, progress: Progress) -> None:
        first_time = progress.step > (self._rows[-1][0] if self._rows else 0)
        self._progress = progress
        with contextlib.suppress(OSError):                                         # a disk that refuses costs figures, not the run
            if first_time:
                row = (progress.step, progress.loss, progress.loss_average, progress.learning_rate, round(time.monotonic() - self._began_at, 3))
                self._rows.append(row)
                self._metrics.writerow(row)
            self._metrics_file.flush()
        self._save("preparing" if progress.stage == "preparing" else "training")
