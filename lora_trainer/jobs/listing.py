"""The jobs of a data folder, for whoever only wants to know: nothing is marked, begun or changed,
and no model is needed.
"""

from pathlib import Path
from typing import Any

from . import lock_file
from .job_views import describe
from .store import JobStore

MOST = 1000


def list_jobs(data_dir: Path) -> list[dict[str, Any]]:
    """Return the newest jobs, newest first; one that had begun, and that no process works on, is
    interrupted.
    """
    path = data_dir / "jobs.sqlite3"
    if not path.is_file():
        return []
    store = JobStore(path)
    try:
        waiting = store.waiting()
        return [
            _described(row, data_dir / "jobs" / row["id"], waiting) for row in store.newest(MOST)
        ]
    finally:
        store.close()


def _described(row: dict[str, Any], folder: Path, waiting: list[str]) -> dict[str, Any]:
    position = waiting.index(row["id"]) if row["id"] in waiting else None
    return describe(
        row,
        {"state": "interrupted"} if lock_file.is_lost(row, folder) else {},
        folder,
        position=position,
    )
