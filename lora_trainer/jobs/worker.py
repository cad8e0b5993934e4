"""The thread of a running job: it locks the job's folder, keeps the log, and writes figures and the
end into the job's row.

What the job does is in training_job.py and captioning_job.py; queue.py decides when it starts.
"""

import abc
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base.control import Control
from ..base.errors import Refused
from ..training.compute_mode import describe_out_of_memory, is_out_of_memory
from .job import INTERRUPTED_MESSAGE, JobKind, JobState
from .lock_file import locked
from .log_file import NAME as LOG_NAME
from .log_file import log_file
from .store import JobStore

log = logging.getLogger(__name__)
SAVE_EVERY_SECONDS = 0.5


class Job(abc.ABC, threading.Thread):
    """A job at work. Ask it to stop or pause by `control`; read `current()` and `metrics()` from
    any thread.
    """

    kind: JobKind
    can_pause = False
    from_step = 0  # the step of the training state it resumed from
    memory_advice = "Close other programs."

    def __init__(self, job_id: str, store: JobStore, folder: Path) -> None:
        super().__init__(name=f"train-lora-job-{job_id}", daemon=True)
        self.job_id = job_id
        self.folder = folder
        self.control = Control()
        self.report_count = 0  # grows with every report, so that listeners see that there is one
        self.ended: dict[str, Any] = {}  # the row's last values, once it has ended
        self.end_saved = False  # whether `ended` is in the database
        self.trouble = "It ended without a word."  # the error, where `ended` stays empty
        self._store = store
        self._saved_at = 0.0
        self._state = JobState.PREPARING
        self._on_end: Callable[[Job], None] = lambda job: None

    # --- What each kind of job defines ------------------------------------------------------------

    @abc.abstractmethod
    def _files(self) -> contextlib.AbstractContextManager[None]:
        """Write the job's settings into its folder, and keep its files open. Raises OSError."""

    @abc.abstractmethod
    def _work(self) -> Mapping[str, Any]:
        """Do the work and return the row's last values, `state` among them. May raise anything."""

    @abc.abstractmethod
    def _figures(self) -> dict[str, Any]:
        """Return the job's figures by name, as `JobFigures`, and `message`."""

    def metrics(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the metrics of every step after `since`; only training has steps."""
        return []

    # --- What is the same for all jobs ------------------------------------------------------------

    def begin(self, on_end: Callable[["Job"], None]) -> None:
        """Start the thread; it calls `on_end` last."""
        self._on_end = on_end
        self.start()

    def current(self) -> dict[str, Any]:
        """Return what is newer than the job's row: its figures and state, or how it ended."""
        return self.ended or {**self._figures(), "state": self._state, **self._pending_requests()}

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # not even the end could be written; the queue does
            self.trouble = self._failure(error)["error"]
        finally:
            self._on_end(self)

    def _run(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder), log_file(self.folder / LOG_NAME):
                self._do()
        except OSError as error:
            if not self.ended:
                self._end(JobState.FAILED, error=self._folder_error(error))

    def _folder_error(self, error: OSError) -> str:
        reason = error.strerror or error
        return (
            f"The job's folder {self.folder} cannot be written: {reason}. Free some space, or mend"
            " its permissions."
        )

    def _do(self) -> None:
        """Work, and write the end down. Raises OSError where the job's folder refuses."""
        try:
            with self._files():
                self._end(**self._as_interrupted(self._result()))
        except OSError:
            raise
        except BaseException as error:  # entry point of a thread: log, report; the program lives on
            failure = self._failure(error)
            if not self.ended:
                self._end(**failure)

    def _as_interrupted(self, ended: dict[str, Any]) -> dict[str, Any]:
        """Call a job interrupted, not stopped, when it was the program's end that stopped it."""
        if ended["state"] != JobState.STOPPED or not self.control.interrupt_requested:
            return ended
        return {**ended, "state": JobState.INTERRUPTED, "message": INTERRUPTED_MESSAGE}

    def _result(self) -> dict[str, Any]:
        """Work and return the row's last values, also where the work fails."""
        try:
            return dict(self._work())
        except Refused as error:
            log.error(error.message)
            return {"state": JobState.FAILED, "error": error.message}
        except BaseException as error:  # an OSError in here is the work's, not the folder's
            return self._failure(error)

    def _failure(self, error: BaseException) -> dict[str, Any]:
        """Log an error and return the row's last values for it."""
        log.error("the job failed", exc_info=error)
        if is_out_of_memory(error):
            what = f"Memory ran out ({describe_out_of_memory(error)}). {self.memory_advice}"
        else:
            what = f"{type(error).__name__}: {error}"
        message = f"{what} The log has the details: {self.folder / LOG_NAME}"
        return {"state": JobState.FAILED, "error": message}

    def _pending_requests(self) -> dict[str, bool]:
        control = self.control
        return {
            "stopping": control.should_stop(),
            "pausing": control.pause_requested and self._state != JobState.PAUSED,
            "free_memory": control.free_memory_requested,
        }

    def _save(self, state: str) -> None:
        """Write the figures into the row: a new state at once, others at most twice a second."""
        self.report_count += 1
        changed = {"state": state} if state != self._state else {}
        self._state = JobState(state)
        if changed or time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
            self._saved_at = time.monotonic()
            figures = self._figures()
            self._update_row(message=figures.pop("message"), progress=figures, **changed)

    def _update_row(self, **values: Any) -> bool:
        """Write into the row; where that fails, as on a full disk, log it and go on with the
        run.
        """
        try:
            self._store.update(self.job_id, **values)
        except Exception:  # where a run meets the database; nothing of it is the run's
            log.exception("the job's figures cannot be written")
            return False
        return True

    def _end(self, state: str, **values: Any) -> None:
        log.info("job %s %s", self.job_id, state)
        figures = self._figures()
        figures.pop("message")
        ended = {"state": state, "finished_at": time.time(), "error": None, "message": "", **values}
        self.end_saved = self._update_row(progress=figures, resume="", **ended)
        self.ended = {**figures, **self._pending_requests(), **ended}
