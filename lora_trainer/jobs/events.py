"""What has changed since the last look, as the messages of the WebSockets.

An event source remembers what it has sent and keeps no queue, however slow its listener is. It
reads the database and files, so web/websockets.py asks it in a worker thread.
"""

import dataclasses
from typing import TypeAlias

from ..base.errors import Refused
from .job import JobView
from .metrics import MetricsRow
from .queue import StartedRun
from .service import TrainingService

Message: TypeAlias = dict[str, object]
MOST_ROWS = 5_000  # in one message


class JobEvents:
    """The events of one job: the job itself, and the metrics of its steps after `since`."""

    def __init__(self, service: TrainingService, job_id: str, since: int = 0) -> None:
        """Raises `Refused` when there is no such job."""
        service.job(job_id)
        self._service = service
        self._job_id = job_id
        self._change_counts: tuple[int, ...] | None = None
        self._job: JobView | None = None
        self._metrics = _NewMetrics(service, job_id, since)
        self._run = service.queue.newest_run

    def has_changed(self) -> bool:
        """Tell whether there may be new messages; costs nothing."""
        return self._change_counts != self._service.queue.change_counts

    def messages(self) -> list[Message]:
        """Return what is new since the last call. Raises `Refused` when the job was deleted."""
        # before reading: what happens meanwhile belongs to the next call
        self._change_counts = self._service.queue.change_counts
        run, job_before = self._service.queue.newest_run, self._job
        if run and run != self._run and run.job_id == self._job_id:
            self._metrics.go_back_to(run.from_step)  # a resumed run makes later steps again
        self._run = run
        self._job = self._service.job(self._job_id)
        messages: list[Message] = []
        if self._job != job_before:
            messages.append({"type": "job", "job": self._job})
        messages += [{"type": "metrics", "rows": rows} for rows in self._metrics.read()]
        return messages


class ServiceEvents:
    """The events of all jobs: the queue's state, the list of jobs, the running job, and the metrics
    of its steps since these events began.
    """

    def __init__(self, service: TrainingService) -> None:
        self._service = service
        self._change_counts: tuple[int, ...] | None = None
        self._sent: dict[str, object] = {}  # the newest message of each type, as far as compared
        self._run = service.queue.newest_run
        self._metrics: _NewMetrics | None = None
        if running := service.queue.running:
            rows = running.metrics()
            step = rows[-1]["step"] if rows else running.from_step
            self._metrics = _NewMetrics(service, running.job_id, step)

    def has_changed(self) -> bool:
        """Tell whether there may be new messages; costs nothing."""
        return self._change_counts != self._service.queue.change_counts

    def messages(self) -> list[Message]:
        """Return what is new since the last call."""
        # before reading: what happens meanwhile belongs to the next call
        self._change_counts = self._service.queue.change_counts
        run, jobs = self._service.queue.newest_run, self._service.jobs()
        messages = self._follow(run)
        current = self._service.current_job()
        messages += self._if_changed("status", self._status(current))
        if current:
            messages += self._if_changed("job", {"job": current})
        messages += self._metrics_messages()
        return messages + self._if_changed("jobs", {"jobs": jobs}, [_outline(job) for job in jobs])

    def _follow(self, run: StartedRun | None) -> list[Message]:
        """Read the metrics of another run from now on; return the last ones of the run before."""
        if run is None or run == self._run:
            return []
        self._run = run
        if self._metrics and self._metrics.job_id == run.job_id:
            self._metrics.go_back_to(run.from_step)  # a resumed run makes later steps again
            return []
        last = self._metrics_messages()
        self._metrics = _NewMetrics(self._service, run.job_id, run.from_step)
        return last

    def _status(self, current: JobView | None) -> Message:
        return {
            **self._service.queue_status(),
            "current_job": current["id"] if current else None,
            "model": dataclasses.asdict(self._service.host.model_status()),
        }

    def _if_changed(self, kind: str, message: Message, compared: object = None) -> list[Message]:
        compared = message if compared is None else compared
        changed = self._sent.get(kind) != compared
        self._sent[kind] = compared
        return [{"type": kind, **message}] if changed else []

    def _metrics_messages(self) -> list[Message]:
        if self._metrics is None:
            return []
        try:
            chunks = self._metrics.read()
        except Refused:  # the job was deleted meanwhile
            return []
        return [{"type": "metrics", "id": self._metrics.job_id, "rows": rows} for rows in chunks]


class _NewMetrics:
    """The metrics of a job that were not sent yet, in chunks."""

    def __init__(self, service: TrainingService, job_id: str, since: int) -> None:
        self.job_id = job_id
        self._service = service
        self._since = since

    def go_back_to(self, step: int) -> None:
        self._since = min(self._since, step)

    def read(self) -> list[list[MetricsRow]]:
        rows = self._service.metrics(self.job_id, self._since)
        self._since = rows[-1]["step"] if rows else self._since
        return [rows[first : first + MOST_ROWS] for first in range(0, len(rows), MOST_ROWS)]


def _outline(job: JobView) -> tuple[object, ...]:
    """Return what makes a changed list worth sending; figures alone do not.

    `ended_at`, too: a job may have resumed and ended again between two looks.
    """
    return (
        job["id"],
        job["name"],
        job["state"],
        job["position"],
        job["error"],
        job["output_file"],
        job["resumable"],
        job["ended_at"],
        job["config"],
    )
