"""Jobs on disk: one row each in SQLite, so that a page, a restart or a crash finds them again."""
import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATES = ("queued", "preparing", "training", "captioning", "paused", "finished", "stopped", "failed", "interrupted")
ALIVE = ("queued", "preparing", "training", "captioning", "paused")
KINDS = ("training", "captioning")
_TABLE = """create table if not exists jobs (
    id integer primary key autoincrement, name text not null, state text not null, created_at real not null, finished_at real,
    config text not null, progress text not null default '{}', message text not null default '', error text,
    output_file text, lora_tag text)"""
_KIND = "alter table jobs add column kind text not null default 'training'"        # databases of before there were two kinds lack it
_COLUMNS = ("name", "state", "finished_at", "progress", "message", "error", "output_file", "lora_tag")


class JobStore:
    """The table of jobs. Safe to use from any thread; every call is one transaction."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("pragma journal_mode=wal")
        self._database.execute(_TABLE)
        if "kind" not in [column["name"] for column in self._database.execute("pragma table_info(jobs)")]:
            self._database.execute(_KIND)

    def add(self, name: str, config: Mapping[str, Any], *, kind: str = "training") -> str:
        """Add a queued job and return its id."""
        with self._lock:
            cursor = self._database.execute("insert into jobs (name, state, created_at, config, kind) values (?, 'queued', ?, ?, ?)",
                                            (name, time.time(), json.dumps(dict(config), ensure_ascii=False), kind))
        return str(cursor.lastrowid)

    def update(self, job_id: str, **values: Any) -> None:
        """Set columns of a job; `progress` is a mapping."""
        if unknown := set(values) - set(_COLUMNS):
            raise ValueError(f"no such columns: {sorted(unknown)}")
        values = {key: json.dumps(value) if key == "progress" else value for key, value in values.items()}
        assignments = ", ".join(f"{key} = ?" for key in values)
        with self._lock:
            self._database.execute(f"update jobs set {assignments} where id = ?", (*values.values(), int(job_id)))

    def get(self, job_id: str) -> dict[str, Any] | None:
        """Return a job, or None when there is none of this id."""
        if not job_id.isdecimal() or len(job_id) > 15:
            return None
        with self._lock:
            row = self._database.execute("select * from jobs where id = ?", (int(job_id),)).fetchone()
        return _job(row) if row else None

    def newest(self, limit: int = 50, *, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the newest jobs, of one kind or of all, newest first."""
        with self._lock:
            rows = self._database.execute("select * from jobs where ? in (kind, '') order by id desc limit ?", (kind or "", limit)).fetchall()
        return [_job(row) for row in rows]

    def interrupt_all(self) -> int:
        """Mark as interrupted what was alive when the process died; returns how many that were."""
        with self._lock:
            marks = ",".join("?" * len(ALIVE))
            cursor = self._database.execute(f"update jobs set state = 'interrupted', message = 'The program ended while this was running.', "
                                            f"finished_at = ? where state in ({marks})", (time.time(), *ALIVE))
        return cursor.rowcount

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _job(row: sqlite3.Row) -> dict[str, Any]:
    job = dict(row)
    return {**json.loads(job.pop("progress")), **job, "id": str(job["id"]), "config": json.loads(job["config"])}
