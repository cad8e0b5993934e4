"""The one worker: jobs begin one after another in the order of the store. When one ends, in
whatever way, the next begins, unless the queue is held.

A queue that a restart finds is held until the user starts it, or starts any job: after a crash
nobody wants training to begin by itself.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..base.errors import Refused
from .store import JobStore
from .worker import Job

log = logging.getLogger(__name__)


class Begun(NamedTuple):
    """A run that began: of which job, from which step, and the how many-th of this process."""

    job_id: str
    from_step: int
    number: int


class JobQueue:
    """Safe to use from any thread. `make` turns a row of the store into a job."""

    def __init__(self, store: JobStore, make: Callable[[Mapping[str, Any]], Job]) -> None:
        self._store, self._make = store, make
        self._changed = threading.Condition(
            threading.RLock()
        )  # guards all that follows; told when a job has ended
        self._held_by = "restart" if store.waiting() else ""
        self._untold: dict[str, dict[str, Any]] = {}  # ends that the database refused to take down
        self._begun: set[str] = set()  # here, and whose ends are not in the database yet
        self.running: Job | None = None
        self.newest: Begun | None = None  # the running one, or the last that ran
        self.version = 0

    @property
    def held(self) -> bool:
        return bool(self._held_by)

    @property
    def pulse(self) -> tuple[int, ...]:
        """A value that is another one after every change of a job; costs nothing to ask for."""
        running = self.running
        return (self._store.version, self.version, running.reports if running else 0)

    def job(self, job_id: str) -> Job | None:
        """Return the running job if it is this one, and at work still: it has ended before its
        thread has.
        """
        running = self.running
        return (
            running
            if running is not None and running.job_id == job_id and not running.ended
            else None
        )

    def end_of(self, job_id: str) -> Mapping[str, Any]:
        """Return how a job ended where the database could not be told."""
        return self._untold.get(job_id, {})

    def is_ours(self, job_id: str) -> bool:
        """Tell whether it is this process that says how a job is, not the database alone."""
        return job_id in self._begun

    def settle(self, job_id: str, timeout: float = 10) -> None:
        """Wait until the thread of a job that has ended has, too, so that its folder is in nobody's
        hands.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self.running is None or self.running.job_id != job_id or not self.running.ended
                ),
                timeout,
            )

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep jobs from beginning, ending and changing places while something is looked at and
        decided.
        """
        with self._changed:
            yield

    # --- What users ask for -----------------------------------------------------------------------

    def admit(self, job_id: str, *, ahead_of_queue: bool = False) -> None:
        """Let a job that was put into the queue begin when its turn comes; where only a restart
        holds the queue, it goes on.

        `ahead_of_queue`: it begins now, though others wait before it, and leaves them waiting.
        Raises `Refused` when another one is running.
        """
        with self._changed:
            if ahead_of_queue:
                self.refuse_second()
                self._begin(job_id)
                return
            if self._held_by == "restart":
                self._held_by = ""
            self._begin_next()

    def hold(self) -> None:
        """Let no other job begin; the running one goes on."""
        with self._changed:
            self._held_by, self.version = "user", self.version + 1

    def close(self) -> Job | None:
        """Let no other job begin, for the program ends; returns the running one. Takes no lock: a
        signal may come in the middle of anything.
        """
        self._held_by = "restart"
        return self.running

    def start(self) -> None:
        with self._changed:
            self._held_by, self.version = "", self.version + 1
            self._begin_next()

    def cancel(self, job_id: str, **values: Any) -> bool:
        """Take a job out of the queue, with its row's last values; False when it does not wait."""
        with self._changed:
            taken = self._store.take(job_id, **values)
            self._changed.notify_all()
            return taken

    def wait(self, job_id: str, timeout: float | None = None) -> None:
        """Wait until a job has ended, or was taken out of the queue."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alive(job_id), timeout)

    def refuse_second(self) -> None:
        if self.running is not None:
            raise Refused(
                f"Job {self.running.job_id} is still running. Wait until it has ended, or stop it.",
                code="busy",
            )

    # --- The worker -------------------------------------------------------------------------------

    def _begin_next(self) -> None:
        for job_id in self._store.waiting() if not self.running and not self._held_by else ():
            if self._begin(job_id):
                return

    def _begin(self, job_id: str) -> bool:
        """Let a job begin, if it waits still; False when it does not, or cannot begin and has
        failed.
        """
        row = self._store.get(job_id)
        self._begun.add(job_id)
        if row is None or not self._store.take(job_id):  # another process was faster
            self._begun.discard(job_id)
            return False
        self._untold.pop(job_id, None)
        before = self.newest
        try:
            job = self._make(row)
            self.running, self.newest = (
                job,
                Begun(job_id, job.from_step, before.number + 1 if before else 1),
            )
            job.begin(self._ended)
        except Exception as error:  # entry point of a job; most likely no thread can be started
            log.exception("job %s could not begin", job_id)
            self.running, self.newest = None, before
            self._fail(
                job_id,
                f"It could not begin: {type(error).__name__}: {error}. Resume it to try again.",
            )
            return False
        finally:
            self.version += 1
        return True

    def _fail(self, job_id: str, error: str) -> None:
        """Write down the end of a job that could not say so itself."""
        ended = {
            "state": "failed",
            "error": error,
            "message": "",
            "finished_at": time.time(),
            "resume": "",
        }
        try:
            self._store.update(job_id, **ended)
            self._begun.discard(job_id)
        except Exception:  # where the queue meets the database
            log.exception("the end of job %s cannot be written", job_id)
            self._untold[job_id] = ended
        self._changed.notify_all()

    def _ended(self, job: Job) -> None:
        with self._changed:
            if job.told:
                self._begun.discard(job.job_id)
            elif job.ended:
                self._untold[job.job_id] = job.ended
            else:
                self._fail(job.job_id, job.trouble)
            self.running, self.version = None, self.version + 1
            try:
                self._begin_next()
            except Exception:  # a full disk, mostly: the others wait until somebody asks again
                log.exception("the next job could not begin")
            finally:
                self._changed.notify_all()

    def _is_alive(self, job_id: str) -> bool:
        return self.job(job_id) is not None or job_id in self._store.waiting()
