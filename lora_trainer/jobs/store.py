"""Jobs on disk: one row each in SQLite, so that a page, a restart or a crash finds them again;
those that wait have a position.
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base.sqlite import open_database
from ..base.text import storable

STATES = (
    "queued",
    "preparing",
    "training",
    "captioning",
    "paused",
    "finished",
    "stopped",
    "failed",
    "interrupted",
)
ALIVE = ("queued", "preparing", "training", "captioning", "paused")
BEGUN = ALIVE[1:]
KINDS = ("training", "captioning")
INTERRUPTED = "The program ended while this was running."
_TABLE = """create table if not exists jobs (
    id integer primary key autoincrement,
    name text not null,
    state text not null,
    created_at real not null,
    finished_at real,
    config text not null,
    progress text not null default '{}',
    message text not null default '',
    error text,
    output_file text,
    lora_tag text)"""
_LATER_COLUMNS = {  # databases of older versions lack some of them
    "kind": "text not null default 'training'",
    "position": (
        "integer"
    ),  # of a job that waits: the lowest is next; its numbers need not be without gaps
    "resume": (
        "text not null default ''"
    ),  # how it begins: "" anew, "same" going on, "anyway" going on though things have changed
    "for_checkpoint": (
        "text not null default ''"
    ),  # the one that was loaded when the job was put into the queue
    "for_sha256": "text",
    "for_kind": (
        "text not null default ''"
    ),  # what that checkpoint is: family, variant, the size it was made for
}
_COLUMNS = (
    "name",
    "state",
    "finished_at",
    "config",
    "progress",
    "message",
    "error",
    "output_file",
    "lora_tag",
    "resume",
)
_JSON, _FIGURES = ("config", "progress"), {"progress", "message"}
_WAITING = "select id from jobs where state = 'queued' order by position is null, position, id"


class JobStore:
    """The table of jobs. Safe to use from any thread; every call is one transaction. `version`
    grows with everything but figures.

    `problems` are sentences for the user about the database itself.
    """

    def __init__(self, path: Path) -> None:
        self._lock, self.version, self._folders, self.problems = (
            threading.RLock(),
            0,
            path.parent / "jobs",
            [],
        )
        self._database = open_database(path, _TABLE, check=True, on_damage=self._note_damage)
        self._database.isolation_level = None  # transactions begin where we say
        there = {column["name"] for column in self._database.execute("pragma table_info(jobs)")}
        for name, kind in _LATER_COLUMNS.items():
            if name not in there:
                self._database.execute(f"alter table jobs add column {name} {kind}")

    # --- One job ----------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        config: Mapping[str, Any],
        *,
        kind: str = "training",
        checkpoint: str = "",
        sha256: str | None = None,
        model_kind: str = "",
    ) -> str:
        """Add a job at the end of the queue, for a checkpoint, and return its id."""
        with self._change():
            job_id = self._next_id()
            self._database.execute(
                "insert into jobs (id, name, state, created_at, config, kind, for_checkpoint,"
                " for_sha256, for_kind) values (?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    storable(name),
                    time.time(),
                    json.dumps(dict(config)),
                    kind,
                    storable(checkpoint),
                    sha256,
                    model_kind,
                ),
            )
            self._put(str(job_id), None)
        return str(job_id)

    def update(self, job_id: str, **values: Any) -> None:
        """Set columns of a job; `config` and `progress` are mappings."""
        if unknown := set(values) - set(_COLUMNS):
            raise ValueError(f"no such columns: {sorted(unknown)}")
        with self._change(counts=not set(values) <= _FIGURES):
            self._set(job_id, values)

    def get(self, job_id: str) -> dict[str, Any] | None:
        """Return a job, or None when there is none of this id."""
        if not job_id.isdecimal() or len(job_id) > 15:
            return None
        with self._lock:
            row = self._database.execute(
                "select * from jobs where id = ?", (int(job_id),)
            ).fetchone()
        return _job(row) if row else None

    def delete(self, job_id: str) -> None:
        with self._change():
            self._database.execute("delete from jobs where id = ?", (int(job_id),))

    # --- Several ----------------------------------------------------------------------------------

    def newest(self, limit: int = 50, *, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the newest jobs and all that have not ended, of one kind or of all, newest
        first.
        """
        marks = ",".join("?" * len(ALIVE))
        with self._lock:
            rows = self._database.execute(
                f"select * from jobs where ? in (kind, '') and (state in ({marks}) or id in (select"
                " id from jobs where ? in (kind, '') order by id desc limit ?)) order by id desc",
                (kind or "", *ALIVE, kind or "", limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def ended(self) -> list[dict[str, Any]]:
        """Return all jobs that have ended, newest first."""
        marks = ",".join("?" * len(ALIVE))
        with self._lock:
            rows = self._database.execute(
                f"select * from jobs where state not in ({marks}) order by id desc", ALIVE
            ).fetchall()
        return [_job(row) for row in rows]

    def named(self, name: str, *, kind: str = "training") -> list[dict[str, Any]]:
        """Return the jobs of a name, newest first."""
        with self._lock:
            rows = self._database.execute(
                "select * from jobs where name = ? and kind = ? order by id desc",
                (storable(name), kind),
            ).fetchall()
        return [_job(row) for row in rows]

    def interrupt_all(self, spare: Callable[[str], bool] = lambda job_id: False) -> int:
        """Mark as interrupted what had begun when the process died, but none that `spare` says is
        alive elsewhere; returns how many.
        """
        with self._change():
            marks = ",".join("?" * len(BEGUN))
            begun = [
                str(row["id"])
                for row in self._database.execute(
                    f"select id from jobs where state in ({marks})", BEGUN
                )
            ]
            lost = [job_id for job_id in begun if not spare(job_id)]
            for job_id in lost:
                self._set(
                    job_id,
                    {"state": "interrupted", "message": INTERRUPTED, "finished_at": time.time()},
                )
        return len(lost)

    # --- The queue --------------------------------------------------------------------------------

    def waiting(self) -> list[str]:
        """Return the ids of the jobs that wait, the next one first."""
        with self._lock:
            return [str(row["id"]) for row in self._database.execute(_WAITING)]

    def queue(self, job_id: str, was: str, **values: Any) -> bool:
        """Make a job whose state was this one the next one, and set columns of it; False when its
        state has changed meanwhile.
        """
        with self._change():
            cursor = self._database.execute(
                "update jobs set state = 'queued' where id = ? and state = ?", (int(job_id), was)
            )
            if cursor.rowcount:
                self._set(job_id, {"error": None, "finished_at": None, **values})
                self._put(job_id, 0)
        return cursor.rowcount == 1

    def move(self, job_id: str, position: int) -> None:
        """Give a job that waits another place; 0 is next."""
        with self._change():
            self._put(job_id, position)

    def take(self, job_id: str, **values: Any) -> bool:
        """Take a job out of the queue, to begin or with these columns; False when it does not wait
        any more.
        """
        with self._change():
            cursor = self._database.execute(
                "update jobs set state = 'preparing', position = null where id = ? and state ="
                " 'queued'",
                (int(job_id),),
            )
            if cursor.rowcount and values:
                self._set(job_id, values)
        return cursor.rowcount == 1

    def close(self) -> None:
        with self._lock:
            self._database.close()

    # --- Inside a transaction ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _change(self, *, counts: bool = True) -> Iterator[None]:
        with self._lock:
            self._database.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")
            self.version += counts

    def _set(self, job_id: str, values: Mapping[str, Any]) -> None:
        values = {
            key: (
                json.dumps(value)
                if key in _JSON
                else storable(value)
                if isinstance(value, str)
                else value
            )
            for key, value in values.items()
        }
        assignments = ", ".join(f"{key} = ?" for key in values)
        self._database.execute(
            f"update jobs set {assignments} where id = ?", (*values.values(), int(job_id))
        )

    def _next_id(self) -> int:
        """Return an id that no job had, nor a folder has: the database may be younger than the
        folders.
        """
        newest = (
            self._database.execute(
                "select max(seq) from sqlite_sequence where name = 'jobs'"
            ).fetchone()[0]
            or 0
        )
        names = (entry.name for entry in self._folders.iterdir()) if self._folders.is_dir() else ()
        return (
            max([newest, *(int(name) for name in names if name.isdecimal() and len(name) < 15)]) + 1
        )

    def _note_damage(self, aside: Path) -> None:
        self.problems.append(
            f"The list of jobs was damaged and is begun anew; the old one is kept as {aside}. "
            f"The jobs' folders in {self._folders} are as they were."
        )

    def _put(self, job_id: str, position: int | None) -> None:
        """Number the queue anew with this job at a position, or at its end."""
        others = [each for each in self.waiting() if each != job_id]
        others.insert(len(others) if position is None else position, job_id)
        self._database.executemany(
            "update jobs set position = ? where id = ?",
            [(number, int(each)) for number, each in enumerate(others)],
        )


def _job(row: sqlite3.Row) -> dict[str, Any]:
    job = dict(row)
    return {
        **json.loads(job.pop("progress")),
        **job,
        "id": str(job["id"]),
        "config": json.loads(job["config"]),
    }
