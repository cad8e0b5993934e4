"""What has changed since somebody asked last, as the messages of the WebSockets. Reads the store
and files, so it is asked in a worker thread.

A feed remembers only what it has told; nothing is kept for a listener, however slow it is.
"""

import contextlib
import dataclasses
from typing import Any

from ..base.errors import Refused
from .service import TrainingService

Message = dict[str, Any]
MOST_ROWS = 5_000  # in one message


class JobFeed:
    """News of one job: the job itself, and the rows of its steps after `since`."""

    def __init__(self, service: TrainingService, job_id: str, since: int = 0) -> None:
        """Raises `Refused` when there is no such job."""
        service.job(job_id)
        self._service, self._job_id, self._pulse, self._job = service, job_id, None, None
        self._rows, self._run = _Rows(service, job_id, since), service.queue.newest

    def has_news(self) -> bool:
        """Tell whether anything has happened at all; costs nothing."""
        return self._pulse != self._service.queue.pulse

    def news(self) -> list[Message]:
        """Raises `Refused` when the job was deleted."""
        self._pulse = (
            self._service.queue.pulse
        )  # before reading: what happens meanwhile is told next time
        run, before = self._service.queue.newest, self._job
        if (
            run != self._run and run.job_id == self._job_id
        ):  # it goes on: the steps after that are to be made again
            self._rows.back_to(run.from_step)
        self._run, self._job = run, self._service.job(self._job_id)
        return [{"type": "job", "job": self._job}] * (self._job != before) + [
            {"type": "metrics", "rows": rows} for rows in self._rows.news()
        ]


class ServiceFeed:
    """News of all jobs: the queue's state, the list of jobs, the running job, and the rows of its
    steps since the beginning of the feed.
    """

    def __init__(self, service: TrainingService) -> None:
        self._service, self._pulse, self._told, self._rows, self._run = (
            service,
            None,
            {},
            None,
            service.queue.newest,
        )
        if running := service.queue.running:
            rows = running.metrics()
            self._rows = _Rows(
                service, running.job_id, rows[-1]["step"] if rows else running.from_step
            )

    def has_news(self) -> bool:
        """Tell whether anything has happened at all; costs nothing."""
        return self._pulse != self._service.queue.pulse

    def news(self) -> list[Message]:
        self._pulse = (
            self._service.queue.pulse
        )  # before reading: what happens meanwhile is told next time
        run, jobs, messages = self._service.queue.newest, self._service.jobs(), []
        if (
            run != self._run and self._rows and self._rows.job_id == run.job_id
        ):  # it goes on: the steps after that are to be made again
            self._rows.back_to(run.from_step)
        elif run != self._run:
            messages = self._row_messages()  # the rest of the one before
            self._rows = _Rows(self._service, run.job_id, run.from_step)
        self._run = run
        current = self._service.current_job()
        messages += self._if_changed(
            "status",
            {
                **self._service.queue_status(),
                "current_job": current["id"] if current else None,
                "model": dataclasses.asdict(self._service.host.model_status()),
            },
        )
        messages += self._if_changed("job", {"job": current}) if current else []
        messages += self._row_messages()
        return messages + self._if_changed("jobs", {"jobs": jobs}, [_outline(job) for job in jobs])

    def _if_changed(self, kind: str, message: Message, compared: Any = None) -> list[Message]:
        compared = message if compared is None else compared
        changed = self._told.get(kind) != compared
        self._told[kind] = compared
        return [{"type": kind, **message}] if changed else []

    def _row_messages(self) -> list[Message]:
        with contextlib.suppress(Refused):  # the job was deleted meanwhile
            return (
                [
                    {"type": "metrics", "id": self._rows.job_id, "rows": rows}
                    for rows in self._rows.news()
                ]
                if self._rows
                else []
            )
        return []


class _Rows:
    """The rows of a job that were not told yet, in portions."""

    def __init__(self, service: TrainingService, job_id: str, since: int) -> None:
        self.job_id, self._service, self._since = job_id, service, since

    def back_to(self, step: int) -> None:
        self._since = min(self._since, step)

    def news(self) -> list[list[dict[str, Any]]]:
        rows = self._service.metrics(self.job_id, self._since)
        self._since = rows[-1]["step"] if rows else self._since
        return [rows[first : first + MOST_ROWS] for first in range(0, len(rows), MOST_ROWS)]


def _outline(job: Message) -> tuple:
    """What of a job makes the list another one; figures do not. When it ended, too: it may have
    gone on and ended again between two looks.
    """
    return tuple(
        job[name]
        for name in (
            "id",
            "name",
            "state",
            "position",
            "error",
            "output_file",
            "resumable",
            "ended_at",
            "config",
        )
    )
