"""`jobs`: the jobs of a data folder as a plain table. Only reads: a program that works on one of
them is not disturbed.
"""

from collections.abc import Sequence
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..jobs.job import JobKind, JobView
from ..jobs.job_views import list_jobs

HEAD = ("id", "name", "state", "step", "resumable")


def table(data_dir: Path) -> str:
    """Return the table, newest job first. Raises `Refused` where there are no jobs."""
    jobs = list_jobs(data_dir.expanduser())
    if not jobs:
        raise Refused(
            f"There are no jobs in {data_dir}.", field="data_dir", code=ErrorCode.NOT_FOUND
        )
    return _aligned([HEAD, *(_cells(job) for job in jobs)])


def _cells(job: JobView) -> tuple[str, ...]:
    if job["kind"] == JobKind.TRAINING:
        done, total = job.get("step", 0), job.get("total_steps") or 0
    else:
        done, total = job.get("done", 0), job.get("total", 0)
    resumable = f"at step {job['resume_step'] or 0}" if job["resumable"] else "no"
    return job["id"], job["name"], str(job["state"]), f"{done} of {total}", resumable


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
