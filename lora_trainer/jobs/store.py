"""The table of jobs in SQLite, one row each, so that a restart or a crash finds them again. Jobs
that wait have a position in the queue; queue.py decides when they begin.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.sqlite import open_database
from ..base.text import storable
from .job import ALIVE, INTERRUPTED_MESSAGE, STARTED, JobColumns, JobKind, JobRow, JobState

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

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
_LATER_COLUMNS = {  # databases of older versions lack some of them; JobRow says what they mean
    "kind": "text not null default 'training'",
    "position": "integer",  # the lowest is next; there may be gaps
    "resume": "text not null default ''",
    "for_checkpoint": "text not null default ''",
    "for_sha256": "text",
    "for_kind": "text not null default ''",
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
_JSON_COLUMNS = ("config", "progress")
_FIGURE_COLUMNS = {"progress", "message"}  # written often, and no reason to look at all jobs anew
_WAITING = "select id from jobs where state = 'queued' order by position is null, position, id"


def database_path(data_dir: Path) -> Path:
    """Return the path of a data folder's database of jobs, which need not be there yet."""
    return data_dir / "jobs.sqlite3"


def jobs_folder(data_dir: Path) -> Path:
    """Return the folder that holds the folders of all jobs."""
    return data_dir / "jobs"


def folder_of_job(data_dir: Path, job_id: str) -> Path:
    """Return the folder of one job: its log, figures and training states."""
    return jobs_folder(data_dir) / job_id


class JobStore:
    """Safe to use from any thread; every call is one transaction. `version` grows with every change
    but those of figures.

    `problems` are sentences for the user about the database itself.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._folders = jobs_folder(path.parent)
        self.version = 0
        self.problems: list[str] = []
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
        config: Mapping[str, object],
        *,
        kind: JobKind = JobKind.TRAINING,
        checkpoint: str = "",
        sha256: str | None = None,
        model_kind: str = "",
    ) -> str:
        """Add a job for a checkpoint at the end of the queue, and return its id."""
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
                    JobKind(kind).value,
                    storable(checkpoint),
                    sha256,
                    model_kind,
                ),
            )
            self._put(str(job_id), None)
        return str(job_id)

    def update(self, job_id: str, **values: "Unpack[JobColumns]") -> None:
        """Set columns of a job; `config` and `progress` are mappings."""
        if unknown := set(values) - set(_COLUMNS):
            raise ValueError(f"no such columns: {sorted(unknown)}")
        with self._change(counts=not set(values) <= _FIGURE_COLUMNS):
            self._set(job_id, values)

    def get(self, job_id: str) -> JobRow | None:
        """Return a job, or None when there is none of this id."""
        if not job_id.isdecimal() or len(job_id) > 15:
            return None
        with self._lock:
            row = self._database.execute(
                "select * from jobs where id = ?", (int(job_id),)
            ).fetchone()
        return JobRow.read(row) if row else None

    def delete(self, job_id: str) -> None:
        with self._change():
            self._database.execute("delete from jobs where id = ?", (int(job_id),))

    # --- Several ----------------------------------------------------------------------------------

    def newest(self, limit: int = 50, *, kind: JobKind | None = None) -> list[JobRow]:
        """Return the newest jobs and all that have not ended, newest first."""
        marks = ",".join("?" * len(ALIVE))
        wanted_kind = kind.value if kind else ""
        with self._lock:
            rows = self._database.execute(
                f"select * from jobs where ? in (kind, '') and (state in ({marks}) or id in (select"
                " id from jobs where ? in (kind, '') order by id desc limit ?)) order by id desc",
                (wanted_kind, *_values(ALIVE), wanted_kind, limit),
            ).fetchall()
        return [JobRow.read(row) for row in rows]

    def ended(self) -> list[JobRow]:
        """Return all jobs that have ended, newest first."""
        marks = ",".join("?" * len(ALIVE))
        with self._lock:
            rows = self._database.execute(
                f"select * from jobs where state not in ({marks}) order by id desc", _values(ALIVE)
            ).fetchall()
        return [JobRow.read(row) for row in rows]

    def named(self, name: str, *, kind: JobKind = JobKind.TRAINING) -> list[JobRow]:
        """Return the jobs of a name, newest first."""
        with self._lock:
            rows = self._database.execute(
                "select * from jobs where name = ? and kind = ? order by id desc",
                (storable(name), kind.value),
            ).fetchall()
        return [JobRow.read(row) for row in rows]

    def interrupt_all(self, is_alive: Callable[[str], bool] = lambda job_id: False) -> int:
        """Mark the jobs that were running when their process died as interrupted; return how many.

        `is_alive` tells which jobs another process is working on.
        """
        marks = ",".join("?" * len(STARTED))
        with self._change():
            rows = self._database.execute(
                f"select id from jobs where state in ({marks})", _values(STARTED)
            ).fetchall()
            abandoned = [job_id for row in rows if not is_alive(job_id := str(row["id"]))]
            for job_id in abandoned:
                ended: JobColumns = {
                    "state": JobState.INTERRUPTED,
                    "message": INTERRUPTED_MESSAGE,
                    "finished_at": time.time(),
                }
                self._set(job_id, ended)
        return len(abandoned)

    # --- The queue --------------------------------------------------------------------------------

    def waiting(self) -> list[str]:
        """Return the ids of the jobs that wait, the next one first."""
        with self._lock:
            return [str(row["id"]) for row in self._database.execute(_WAITING)]

    def requeue(self, job_id: str, state: JobState, /, **values: "Unpack[JobColumns]") -> bool:
        """Put a job in front of the queue and set columns of it; False when its state is not
        `state` any more.
        """
        with self._change():
            cursor = self._database.execute(
                "update jobs set state = 'queued' where id = ? and state = ?",
                (int(job_id), JobState(state).value),
            )
            if cursor.rowcount:
                columns: JobColumns = {"error": None, "finished_at": None}
                self._set(job_id, {**columns, **values})
                self._put(job_id, 0)
        return cursor.rowcount == 1

    def move(self, job_id: str, position: int) -> None:
        """Move a job that waits to another position; 0 is next."""
        with self._change():
            self._put(job_id, position)

    def take(self, job_id: str, **values: "Unpack[JobColumns]") -> bool:
        """Take a job out of the queue and set columns of it (its state, unless it begins); False
        when it does not wait any more.
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
                self._database.execute("commit")
            except BaseException:
                if self._database.in_transaction:  # a full disk has rolled it back already
                    self._database.execute("rollback")
                raise
            if counts:
                self.version += 1

    def _set(self, job_id: str, values: JobColumns) -> None:
        stored = {name: _stored(name, value) for name, value in values.items()}
        assignments = ", ".join(f"{name} = ?" for name in stored)
        self._database.execute(
            f"update jobs set {assignments} where id = ?", (*stored.values(), int(job_id))
        )

    def _next_id(self) -> int:
        """Return an id that neither a job nor a folder has: a damaged database is begun anew."""
        row = self._database.execute(
            "select max(seq) from sqlite_sequence where name = 'jobs'"
        ).fetchone()
        used = [row[0] or 0]
        if self._folders.is_dir():
            names = [entry.name for entry in self._folders.iterdir()]
            used += [int(name) for name in names if name.isdecimal() and len(name) < 15]
        return max(used) + 1

    def _note_damage(self, aside: Path) -> None:
        self.problems.append(
            f"The list of jobs was damaged and is begun anew; the old one is kept as {aside}. "
            f"The jobs' folders in {self._folders} are as they were."
        )

    def _put(self, job_id: str, position: int | None) -> None:
        """Renumber the queue with this job at a position, or at its end."""
        others = [each for each in self.waiting() if each != job_id]
        others.insert(len(others) if position is None else position, job_id)
        self._database.executemany(
            "update jobs set position = ? where id = ?",
            [(number, int(each)) for number, each in enumerate(others)],
        )


def _values(states: Sequence[JobState]) -> tuple[str, ...]:
    return tuple(state.value for state in states)


def _stored(name: str, value: object) -> object:
    if name in _JSON_COLUMNS:
        return json.dumps(value)
    return storable(value) if isinstance(value, str) else value
