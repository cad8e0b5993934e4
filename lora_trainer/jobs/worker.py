"""A job is a thread with a folder: its row, its log and its end are written down here, whatever it does.

What it does is in `training.py` and `captioning.py`, each of which says how it works and how its progress reads.
"""
import abc
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import Refused
from .store import JobStore

log = logging.getLogger(__name__)
SAVE_EVERY_SECONDS = 0.5


class Job(abc.ABC, threading.Thread):
    """A running job. Start it; ask `stop()`; read `snapshot()` and `metrics()` from any thread."""

    kind: str
    memory_advice = "Close other programs that use the GPU."

    def __init__(self, job_id: str, store: JobStore, folder: Path) -> None:
        super().__init__(name=f"train-lora-job-{job_id}", daemon=True)
        self.job_id, self.folder, self._store = job_id, folder, store
        self._stop_asked, self._saved_at = threading.Event(), 0.0
        self.done = threading.Event()              # join() cannot be trusted after a Ctrl-C interrupted it
        self.ended: dict[str, Any] = {}            # how it ended; also where the database could not be told

    # --- What each kind says ---------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _files(self) -> contextlib.AbstractContextManager[None]:
        """Write down in the job's folder what is to be done, and keep its files open while it is. Raises OSError."""

    @abc.abstractmethod
    def _work(self) -> Mapping[str, Any]:
        """Do it, and return the row's last values, `state` among them. Raises `Refused` and anything else."""

    @abc.abstractmethod
    def _figures(self) -> dict[str, Any]:
        """Return where it is, as plain values; `message` among them."""

    def metrics(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the figures of every step after `since`; only training has steps."""
        return []

    # --- What is the same for all ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the job to stop after what it is in the middle of; what is done by then is kept."""
        self._stop_asked.set()

    def snapshot(self) -> dict[str, Any]:
        return {**self._figures(), "stopping": self._stop_asked.is_set()}

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.done.set()

    def _run(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _log_file(self.folder / "log.txt", self.ident), self._files():
                self._do()
        except OSError as error:
            if not self.ended:
                self._end("failed", error=f"The job's folder {self.folder} cannot be written: {error.strerror or error}. Free some space, or mend its permissions.")

    def _do(self) -> None:
        try:
            ended = dict(self._work())
        except Refused as error:
            log.error(error.message)
            self._end("failed", error=error.message)
        except Exception as error:                                                 # entry point of a thread: log, report, go on living
            log.exception("the job failed")
            self._end("failed", error=f"{self._out_of_memory(error) or f'{type(error).__name__}: {error}'} The log has the details: {self.folder / 'log.txt'}")
        else:
            self._end(**ended)

    def _save(self, state: str) -> None:
        """Write where it is into the row, not more than twice a second."""
        if time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
            self._saved_at = time.monotonic()
            figures = self._figures()
            self._tell(state=state, message=figures.pop("message"), progress=figures)

    def _tell(self, **values: Any) -> None:
        """Write to the row; a disk that refuses costs figures, not the run."""
        try:
            self._store.update(self.job_id, **values)
        except (OSError, sqlite3.Error):
            log.exception("the job's figures cannot be written")

    def _end(self, state: str, **values: Any) -> None:
        log.info("job %s %s", self.job_id, state)
        figures = self._figures()
        figures.pop("message")
        ended = {"state": state, "finished_at": time.time(), **values}
        try:
            self._store.update(self.job_id, progress=figures, **ended)
        except sqlite3.Error:
            log.exception("the job's end cannot be written")
        self.ended = {**self.snapshot(), "error": None, "output_file": None, "lora_tag": None, "message": "", **ended}

    def _out_of_memory(self, error: Exception) -> str | None:
        return f"The GPU ran out of memory. {self.memory_advice}" if "out of memory" in str(error).lower() else None


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
