"""A job is a thread with a folder: its row, its log and its end are written down here, whatever it
does.

What it does is in `training.py` and `captioning.py`, each of which says how it works and how its
progress reads; when it does it, in `queue.py`.
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
from .lock_file import claimed
from .log_file import NAME as LOG_NAME
from .log_file import log_file
from .store import INTERRUPTED, JobStore

log = logging.getLogger(__name__)
SAVE_EVERY_SECONDS = 0.5


class Job(abc.ABC, threading.Thread):
    """A running job. Start it; ask by `control`; read `now()` and `metrics()` from any thread."""

    kind: str
    can_pause = False
    from_step = 0  # where a run that goes on began
    memory_advice = "Close other programs."

    def __init__(self, job_id: str, store: JobStore, folder: Path) -> None:
        super().__init__(name=f"train-lora-job-{job_id}", daemon=True)
        self.job_id, self.folder, self.control, self.reports, self._store = (
            job_id,
            folder,
            Control(),
            0,
            store,
        )
        self._saved_at, self._state = 0.0, "preparing"
        self.ended: dict[str, Any] = {}  # how it ended
        self.trouble = "It ended without a word."  # why that is not known
        self.told = False  # whether the database could be told how
        self._on_end: Callable[[Job], None] = lambda job: None

    # --- What each kind says ----------------------------------------------------------------------

    @abc.abstractmethod
    def _files(self) -> contextlib.AbstractContextManager[None]:
        """Write down in the job's folder what is to be done, and keep its files open while it is.
        Raises OSError.
        """

    @abc.abstractmethod
    def _work(self) -> Mapping[str, Any]:
        """Do it, and return the row's last values, `state` among them. Raises `Refused` and
        anything else.
        """

    @abc.abstractmethod
    def _figures(self) -> dict[str, Any]:
        """Return where it is, as plain values; `message` among them."""

    def metrics(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the figures of every step after `since`; only training has steps."""
        return []

    # --- What is the same for all -----------------------------------------------------------------

    def begin(self, on_end: Callable[["Job"], None]) -> None:
        """Start the thread; it calls `on_end` last."""
        self._on_end = on_end
        self.start()

    def now(self) -> dict[str, Any]:
        """Return where the job is, or how it ended."""
        return self.ended or {**self._figures(), "state": self._state, **self._asked()}

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # even its end could not be said; the queue says it
            self.trouble = self._failure(error)["error"]
        finally:
            self._on_end(self)

    def _run(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with claimed(self.folder), log_file(self.folder / LOG_NAME):
                self._do()
        except OSError as error:
            if not self.ended:
                self._end(
                    "failed",
                    error=(
                        f"The job's folder {self.folder} cannot be written:"
                        f" {error.strerror or error}. Free some space, or mend its permissions."
                    ),
                )

    def _do(self) -> None:
        """Work, and end. Raises OSError where the job's folder refuses."""
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
        """Tell a job that was stopped by a user from one that the program's end stopped, which is
        to go on.
        """
        return (
            {**ended, "state": "interrupted", "message": INTERRUPTED}
            if ended["state"] == "stopped" and self.control.interrupt_requested
            else ended
        )

    def _result(self) -> dict[str, Any]:
        """Work, and return how it ended, in whatever way."""
        try:
            return dict(self._work())
        except Refused as error:
            log.error(error.message)
            return {"state": "failed", "error": error.message}
        except (
            BaseException
        ) as error:  # the same; an OSError in here is the work's, not the folder's
            return self._failure(error)

    def _failure(self, error: BaseException) -> dict[str, Any]:
        """Log an error and return how to tell it."""
        log.error("the job failed", exc_info=error)
        what = (
            f"Memory ran out ({describe_out_of_memory(error)}). {self.memory_advice}"
            if is_out_of_memory(error)
            else f"{type(error).__name__}: {error}"
        )
        return {
            "state": "failed",
            "error": f"{what} The log has the details: {self.folder / LOG_NAME}",
        }

    def _asked(self) -> dict[str, Any]:
        control = self.control
        return {
            "stopping": control.should_stop(),
            "pausing": control.pause_requested and self._state != "paused",
            "free_memory": control.free_memory_requested,
        }

    def _save(self, state: str) -> None:
        """Write where it is into the row, not more than twice a second, but a new state at once."""
        self.reports += 1
        changed = {"state": state} if state != self._state else {}
        self._state = state
        if changed or time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
            self._saved_at = time.monotonic()
            figures = self._figures()
            self._tell(message=figures.pop("message"), progress=figures, **changed)

    def _tell(self, **values: Any) -> bool:
        """Write to the row; whatever refuses that, such as a full disk, costs figures, not the
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
        self.told = self._tell(progress=figures, resume="", **ended)
        self.ended = {**figures, **self._asked(), **ended}
