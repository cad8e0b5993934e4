"""The thread of a running job: it locks the job's folder, keeps the log, and writes figures and the
end into the job's row.

What the job does is in training_job.py and captioning_job.py; queue.py decides when it starts.
"""

import abc
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..base.control import Control
from ..base.errors import Refused
from ..training.compute_mode import describe_out_of_memory, is_out_of_memory
from .job import INTERRUPTED_MESSAGE, JobColumns, JobEnd, JobKind, JobState, JobUpdate
from .lock_file import locked
from .log_file import NAME as LOG_NAME
from .log_file import log_file
from .metrics import MetricsRow
from .store import JobStore

if TYPE_CHECKING:
    pass  # in typing since Python 3.11

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
        self.ended: JobUpdate = {}  # the last figures and the row's last values, once it has ended
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
    def _work(self) -> JobEnd:
        """Do the work and return how it ended. May raise anything."""

    @abc.abstractmethod
    def _figures(self) -> JobUpdate:
        """Return the job's figures, and `message`."""

    def metrics(self, since: int = 0) -> list[MetricsRow]:
        """Return the metrics of every step after `since`; only training has steps."""
        return []

    # --- What is the same for all jobs ------------------------------------------------------------

    def begin(self, on_end: Callable[["Job"], None]) -> None:
        """Start the thread; it calls `on_end` last."""
        self._on_end = on_end
        self.start()

    def current(self) -> JobUpdate:
        """Return what is newer than the job's row: its figures and state, or how it ended."""
        if self.ended:
            return self.ended
        return {**self._figures(), "state": self._state, **self._pending_requests()}

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # not even the end could be written; the queue does
            self.trouble = self._describe(error)
        finally:
            self._on_end(self)

    def _run(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder), log_file(self.folder / LOG_NAME):
                self._do()
        except OSError as error:
            if not self.ended:
                self._end(JobEnd(JobState.FAILED, error=self._folder_error(error)))

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
                self._end(self._as_interrupted(self._result()))
        except OSError:
            raise
        except BaseException as error:  # entry point of a thread: log, report; the program lives on
            failure = JobEnd(JobState.FAILED, error=self._describe(error))
            if not self.ended:
                self._end(failure)

    def _as_interrupted(self, end: JobEnd) -> JobEnd:
        """Call a job interrupted, not stopped, when it was the program's end that stopped it."""
        if end.state != JobState.STOPPED or not self.control.interrupt_requested:
            return end
        return dataclasses.replace(end, state=JobState.INTERRUPTED, message=INTERRUPTED_MESSAGE)

    def _result(self) -> JobEnd:
        """Work and return how it ended, also where the work fails."""
        try:
            return self._work()
        except Refused as error:
            log.error(error.message)
            return JobEnd(JobState.FAILED, error=error.message)
        except BaseException as error:  # an OSError in here is the work's, not the folder's
            return JobEnd(JobState.FAILED, error=self._describe(error))

    def _describe(self, error: BaseException) -> str:
        """Log an error and return a sentence on it for the user."""
        log.error("the job failed", exc_info=error)
        if is_out_of_memory(error):
            what = f"Memory ran out ({describe_out_of_memory(error)}). {self.memory_advice}"
        else:
            what = f"{type(error).__name__}: {error}"
        return f"{what} The log has the details: {self.folder / LOG_NAME}"

    def _pending_requests(self) -> JobUpdate:
        control = self.control
        return {
            "stopping": control.should_stop(),
            "pausing": control.pause_requested and self._state != JobState.PAUSED,
            "free_memory": control.free_memory_requested,
        }

    def _save(self, state: str) -> None:
        """Write the figures into the row: a new state at once, others at most twice a second."""
        self.report_count += 1
        changes = state != self._state
        self._state = JobState(state)
        if changes or time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
            self._saved_at = time.monotonic()
            figures = self._figures()
            columns: JobColumns = {"message": figures.pop("message"), "progress": figures}
            if changes:
                columns["state"] = self._state
            self._update_row(columns)

    def _update_row(self, columns: JobColumns) -> bool:
        """Write into the row; where that fails, as on a full disk, log it and go on with the
        run.
        """
        try:
            self._store.update(self.job_id, **columns)
        except Exception:  # where a run meets the database; nothing of it is the run's
            log.exception("the job's figures cannot be written")
            return False
        return True

    def _end(self, end: JobEnd) -> None:
        log.info("job %s %s", self.job_id, end.state)
        figures, columns = self._figures(), end.columns()
        figures.pop("message")
        self.end_saved = self._update_row({**columns, "progress": figures, "resume": ""})
        self.ended = cast(JobUpdate, {**figures, **self._pending_requests(), **columns})
