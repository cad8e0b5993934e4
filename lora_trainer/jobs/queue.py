"""The one worker: jobs begin one after another in the order of the store. When one ends, in
whatever way, the next begins, unless the queue is held.

A queue that a restart finds is held until the user starts it, or starts any job: after a crash
nobody wants training to begin by itself.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

from ..base.errors import ErrorCode, Refused
from .job import JobColumns, JobEnd, JobRow, JobState, JobUpdate
from .store import JobStore
from .worker import Job

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

log = logging.getLogger(__name__)


class StartedRun(NamedTuple):
    """A run that began: of which job, from which step, and its number in this process, from 1."""

    job_id: str
    from_step: int
    number: int


class JobQueue:
    """Safe to use from any thread. `make` turns a row of the store into a job."""

    def __init__(self, store: JobStore, make: Callable[[JobRow], Job]) -> None:
        self._store = store
        self._make = make
        self._changed = threading.Condition(threading.RLock())  # notified when a job has ended
        self._held_by = "restart" if store.waiting() else ""
        self._unsaved_ends: dict[str, JobUpdate] = {}  # what the database refused, by job
        self._own_jobs: set[str] = set()  # started here, and whose end is not in the database yet
        self.running: Job | None = None
        self.newest_run: StartedRun | None = None  # the running one, or the last that ran
        self.version = 0

    @property
    def held(self) -> bool:
        return bool(self._held_by)

    @property
    def change_counts(self) -> tuple[int, ...]:
        """A value that differs after every change of a job; costs nothing to read."""
        running = self.running
        return (self._store.version, self.version, running.report_count if running else 0)

    def running_job(self, job_id: str) -> Job | None:
        """Return the running job if it has this id and is still at work.

        A job has ended before its thread has.
        """
        running = self.running
        if running is None or running.job_id != job_id or running.ended:
            return None
        return running

    def unsaved_end(self, job_id: str) -> JobUpdate:
        """Return how a job ended where that could not be written into the database."""
        return self._unsaved_ends.get(job_id, {})

    def owns(self, job_id: str) -> bool:
        """Tell whether this process knows more of a job than the database does."""
        return job_id in self._own_jobs

    def wait_for_thread(self, job_id: str, timeout: float = 10) -> None:
        """Wait until the thread of a job that has ended is gone and leaves the folder alone."""

        def is_gone() -> bool:
            running = self.running
            return running is None or running.job_id != job_id or not running.ended

        with self._changed:
            self._changed.wait_for(is_gone, timeout)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep jobs from beginning, ending and moving while something is checked and decided."""
        with self._changed:
            yield

    # --- What users ask for -----------------------------------------------------------------------

    def admit(self, job_id: str, *, ahead_of_queue: bool = False) -> None:
        """Let a job of the queue begin when its turn comes; a queue that only a restart holds goes
        on.

        With `ahead_of_queue` the job begins now, the others go on waiting, and `Refused` is raised
        while another job is running.
        """
        with self._changed:
            if ahead_of_queue:
                self.refuse_while_running()
                self._begin(job_id)
                return
            if self._held_by == "restart":
                self._held_by = ""
            self._begin_next()

    def hold(self) -> None:
        """Let no other job begin; the running one goes on."""
        with self._changed:
            self._held_by = "user"
            self.version += 1

    def close(self) -> Job | None:
        """Let no other job begin because the program ends; return the running one.

        Takes no lock: a signal handler may call this in the middle of anything.
        """
        self._held_by = "restart"
        return self.running

    def start(self) -> None:
        with self._changed:
            self._held_by = ""
            self.version += 1
            self._begin_next()

    def cancel(self, job_id: str, **values: "Unpack[JobColumns]") -> bool:
        """Take a job out of the queue, with its row's last values; False when it does not wait."""
        with self._changed:
            taken = self._store.take(job_id, **values)
            self._changed.notify_all()
            return taken

    def wait(self, job_id: str, timeout: float | None = None) -> None:
        """Wait until a job has ended, or was taken out of the queue."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alive(job_id), timeout)

    def refuse_while_running(self) -> None:
        if self.running is not None:
            raise Refused(
                f"Job {self.running.job_id} is still running. Wait until it has ended, or stop it.",
                code=ErrorCode.BUSY,
            )

    # --- The worker -------------------------------------------------------------------------------

    def _begin_next(self) -> None:
        if self.running or self._held_by:
            return
        for job_id in self._store.waiting():
            if self._begin(job_id):
                return

    def _begin(self, job_id: str) -> bool:
        """Let a job begin; False when it does not wait any more, or fails at once."""
        row = self._store.get(job_id)
        self._own_jobs.add(job_id)
        if row is None or not self._store.take(job_id):  # another process was faster
            self._own_jobs.discard(job_id)
            return False
        self._unsaved_ends.pop(job_id, None)
        run_before = self.newest_run
        try:
            self._start_thread(row)
        except Exception as error:  # entry point of a job; most likely no thread can be started
            log.exception("job %s could not begin", job_id)
            self.running = None
            self.newest_run = run_before
            reason = f"{type(error).__name__}: {error}"
            self._fail(job_id, f"It could not begin: {reason}. Resume it to try again.")
            return False
        finally:
            self.version += 1
        return True

    def _start_thread(self, row: JobRow) -> None:
        job = self._make(row)
        number = self.newest_run.number + 1 if self.newest_run else 1
        self.running = job
        self.newest_run = StartedRun(row.id, job.from_step, number)
        job.begin(self._ended)

    def _fail(self, job_id: str, error: str) -> None:
        """Write down the end of a job that could not do so itself."""
        columns = JobEnd(JobState.FAILED, error=error).columns()
        columns["resume"] = ""
        try:
            self._store.update(job_id, **columns)
            self._own_jobs.discard(job_id)
        except Exception:  # where the queue meets the database
            log.exception("the end of job %s cannot be written", job_id)
            self._unsaved_ends[job_id] = cast(JobUpdate, columns)
        self._changed.notify_all()

    def _ended(self, job: Job) -> None:
        with self._changed:
            if job.end_saved:
                self._own_jobs.discard(job.job_id)
            elif job.ended:
                self._unsaved_ends[job.job_id] = job.ended
            else:
                self._fail(job.job_id, job.trouble)
            self.running = None
            self.version += 1
            try:
                self._begin_next()
            except Exception:  # a full disk, mostly: the others wait until somebody asks again
                log.exception("the next job could not begin")
            finally:
                self._changed.notify_all()

    def _is_alive(self, job_id: str) -> bool:
        return self.running_job(job_id) is not None or job_id in self._store.waiting()
