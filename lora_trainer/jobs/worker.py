"""Runs one training job in a thread of its own, and writes down what happens: row, log, metrics."""
import contextlib
import csv
import dataclasses
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.config import TrainConfig
from ..core.contracts import Host, Progress
from ..core.errors import Refused
from ..core.pipeline import train_lora
from .store import JobStore

log = logging.getLogger(__name__)
SAVE_EVERY_SECONDS = 0.5
METRICS = ("step", "loss", "loss_average", "learning_rate", "seconds")


class Job(threading.Thread):
    """A running job. Start it; ask `stop()`; read `snapshot()` and `metrics()` from any thread."""

    def __init__(self, job_id: str, config: TrainConfig, host: Host, store: JobStore, folder: Path) -> None:
        super().__init__(name=f"train-lora-job-{job_id}", daemon=True)
        self.job_id, self._config, self._host, self._store, self._folder = job_id, config, host, store, folder
        self._stop_asked, self._saved_at, self._rows, self._progress = threading.Event(), 0.0, [], Progress("preparing", "Waiting for the model")
        self._began_at = time.monotonic()
        self.done = threading.Event()              # join() cannot be trusted after a Ctrl-C interrupted it
        self.ended: dict[str, Any] = {}            # how it ended; also where the database could not be told

    def stop(self) -> None:
        """Ask the job to stop after the step it is in; what it has learned by then is saved."""
        self._stop_asked.set()

    def snapshot(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self._progress), "stopping": self._stop_asked.is_set()}

    def metrics(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the figures of every step after `since`."""
        return [dict(zip(METRICS, row)) for row in list(self._rows)[max(0, since):]]

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.done.set()

    def _run(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "config.yaml").write_text(self._config.to_yaml(), encoding="utf-8")
            with _log_file(self._folder / "log.txt", self.ident), open(self._folder / "metrics.csv", "w", newline="", encoding="utf-8") as self._metrics_file:
                self._metrics = csv.writer(self._metrics_file)
                self._metrics.writerow(METRICS)
                self._train()
        except OSError as error:
            if not self.ended:
                self._end("failed", error=f"The job's folder {self._folder} cannot be written: {error.strerror or error}. Free some space, or mend its permissions.")

    def _train(self) -> None:
        try:
            self._tell(state="preparing", message="Waiting for the model")
            result = train_lora(self._config, self._host, on_progress=self._report, should_stop=self._stop_asked.is_set)
        except Refused as error:
            log.error(error.message)
            self._end("failed", error=error.message)
        except Exception as error:                                                 # entry point of a thread: log, report, go on living
            log.exception("the job failed")
            self._end("failed", error=f"{_out_of_memory(error) or f'{type(error).__name__}: {error}'} The log has the details: {self._folder / 'log.txt'}")
        else:
            self._end("stopped" if result.stopped else "finished", message=f"{result.steps} steps", lora_tag=result.lora_tag if result.output_file else None,
                      output_file=str(result.output_file) if result.output_file else None)

    def _report(self, progress: Progress) -> None:
        first_time = progress.step > (self._rows[-1][0] if self._rows else 0)
        self._progress = progress
        if first_time:
            row = (progress.step, progress.loss, progress.loss_average, progress.learning_rate, round(time.monotonic() - self._began_at, 3))
            self._rows.append(row)
            with contextlib.suppress(OSError):
                self._metrics.writerow(row)
        if time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
            self._saved_at = time.monotonic()
            self._tell(state="preparing" if progress.stage == "preparing" else "training", progress=_figures(progress), message=progress.message)

    def _tell(self, **values: Any) -> None:
        """Write to the row and the metrics; a disk that refuses costs figures, not the run."""
        try:
            self._metrics_file.flush()
            self._store.update(self.job_id, **values)
        except (OSError, sqlite3.Error):
            log.exception("the job's figures cannot be written")

    def _end(self, state: str, **values: Any) -> None:
        log.info("job %s %s", self.job_id, state)
        ended = {"state": state, "finished_at": time.time(), **values}
        try:
            self._store.update(self.job_id, progress=_figures(self._progress), **ended)
        except sqlite3.Error:
            log.exception("the job's end cannot be written")
        self.ended = {**self.snapshot(), "error": None, "output_file": None, "lora_tag": None, "message": "", **ended}


@contextlib.contextmanager
def _log_file(path: Path, thread: int | None) -> Iterator[None]:
    """Send what the package logs in one thread to a file, too."""
    package, handler = logging.getLogger("lora_trainer"), logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(lambda record: record.thread == thread)
    level = package.level
    package.addHandler(handler)
    package.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
        handler.close()


def _figures(progress: Progress) -> dict[str, Any]:
    figures = dataclasses.asdict(progress)
    figures.pop("message")
    return figures


def _out_of_memory(error: Exception) -> str | None:
    if "out of memory" not in str(error).lower():
        return None
    return ("The GPU ran out of memory. Switch on Save memory (gradient checkpointing), lower the resolution or the batch size, "
            "or close other programs that use the GPU.")
