"""The database of a data set's undo history: steps, their changes, and which captions a captioner
wrote. Only `undo_history` uses it, and sees to it that one thread at a time does.
"""

import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..base.sqlite import open_database
from .digests import digest_of_bytes
from .file_changes import Change

DOING = "doing"
DONE = "done"
UNDOING = "undoing"
UNDONE = "undone"
_TABLES = """
create table if not exists steps (
    id integer primary key autoincrement,
    label text not null,
    state text not null,
    position integer not null,
    at real not null);
create table if not exists changes (
    step integer not null references steps(id) on delete cascade,
    path text not null,
    before,
    after,
    bundle text,
    written integer not null default 0);
create index if not exists changes_by_path on changes (step, path);
drop index if exists changes_of_step;
create index if not exists steps_by_position on steps (state, position);
create table if not exists automatic (
    path text not null,
    digest text not null,
    primary key (path, digest));
"""


class Step(NamedTuple):
    """A step as the database knows it; `state` is one of DOING, DONE, UNDOING and UNDONE."""

    id: int
    label: str
    state: str


class HistoryDatabase:
    """Steps and changes in an SQLite file; each method is one transaction."""

    def __init__(self, path: Path) -> None:
        self._connection = open_database(path, _TABLES)

    def close(self) -> None:
        self._connection.close()

    # --- Steps ------------------------------------------------------------------------------------

    def begin_step(self, label: str) -> int:
        """Add a step in state DOING behind all others, and return its id."""
        with self._connection:
            cursor = self._connection.execute(
                "insert into steps (label, state, position, at)"
                " select ?, ?, coalesce(max(position), 0) + 1, ? from steps",
                (label, DOING, time.time()),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def finish_step(self, step_id: int, *, most_steps: int) -> None:
        """Set a step DONE, or drop it when it changed nothing; keep the newest `most_steps`."""
        with self._connection:
            if not self._has_changes(step_id):
                self._connection.execute("delete from steps where id = ?", (step_id,))
                return
            self._connection.execute("update steps set state = ? where id = ?", (DONE, step_id))
            self._forget(self._steps_in(DONE)[most_steps:])

    def newest_done(self) -> Step | None:
        """Return the step that undo would take back."""
        steps = self._steps_in(DONE, limit=1)
        return steps[0] if steps else None

    def oldest_undone(self) -> Step | None:
        """Return the step that redo would do again."""
        steps = self._steps_in(UNDONE, order="asc", limit=1)
        return steps[0] if steps else None

    def interrupted(self) -> list[Step]:
        """Return the steps that were begun and neither completed nor taken back."""
        rows = self._connection.execute(
            "select id, label, state from steps where state in (?, ?)", (DOING, UNDOING)
        )
        return [Step(*row) for row in rows.fetchall()]

    def set_state(self, step_id: int, state: str, *, pending: Iterable[str] = ()) -> None:
        """Set a step's state, and which of its paths are still to be written."""
        with self._connection:
            self._connection.execute("update steps set state = ? where id = ?", (state, step_id))
            self._connection.execute("update changes set written = 1 where step = ?", (step_id,))
            self._connection.executemany(
                "update changes set written = 0 where step = ? and path = ?",
                [(step_id, path) for path in pending],
            )

    # --- Changes ----------------------------------------------------------------------------------

    def add_changes(
        self, step_id: int, changes: Sequence[Change], *, automatic: bool, forget_undone: bool
    ) -> list[str]:
        """Record changes that are about to be written.

        `automatic` also records the texts as a captioner's. `forget_undone` drops the steps that
        could be done again. Returns the pictures staged in the trash folder for those.
        """
        with self._connection:
            staged = self._forget(self._steps_in(UNDONE)) if forget_undone else []
            self._connection.executemany(
                "insert into changes (step, path, before, after, bundle) values (?, ?, ?, ?, ?)",
                [
                    (step_id, change.path, change.before, change.after, change.bundle)
                    for change in changes
                ],
            )
            if automatic:
                self._connection.executemany(
                    "insert or replace into automatic values (?, ?)",
                    [
                        (change.path, digest_of_bytes(change.after))
                        for change in changes
                        if isinstance(change.after, bytes)
                    ],
                )
        return staged

    def mark_written(
        self, step_id: int, changes: Sequence[Change], *, skipped: Iterable[str]
    ) -> None:
        """Record that changes were written, but for the skipped paths, which are dropped."""
        with self._connection:
            self._connection.executemany(
                "delete from changes where step = ? and path = ?",
                [(step_id, path) for path in skipped],
            )
            self._connection.executemany(
                "update changes set written = 1 where step = ? and path = ?",
                [(step_id, change.path) for change in changes],
            )

    def changes_of(self, step_id: int, *, back: bool, only_pending: bool = False) -> list[Change]:
        """Return a step's changes as they are to be made now, in order; with `back` to undo it."""
        most_written = 0 if only_pending else 1
        rows = self._connection.execute(
            "select path, before, after, bundle from changes"
            " where step = ? and written <= ? order by rowid",
            (step_id, most_written),
        )
        changes = [Change(*row) for row in rows]
        if back:
            return [change.reversed() for change in reversed(changes)]
        return changes

    # --- Captions of captioners -------------------------------------------------------------------

    def automatic(self) -> set[tuple[str, str]]:
        """Return (path, digest) of all captions that captioners wrote."""
        rows = self._connection.execute("select path, digest from automatic")
        return {(row["path"], row["digest"]) for row in rows}

    def is_automatic(self, path: str, digest: str) -> bool:
        row = self._connection.execute(
            "select 1 from automatic where path = ? and digest = ?", (path, digest)
        ).fetchone()
        return row is not None

    # --- Inside -----------------------------------------------------------------------------------

    def _has_changes(self, step_id: int) -> bool:
        row = self._connection.execute(
            "select 1 from changes where step = ? limit 1", (step_id,)
        ).fetchone()
        return row is not None

    def _steps_in(self, state: str, *, order: str = "desc", limit: int = -1) -> list[Step]:
        rows = self._connection.execute(
            f"select id, label, state from steps where state = ? order by position {order} limit ?",
            (state, limit),
        )
        return [Step(*row) for row in rows.fetchall()]

    def _forget(self, steps: Iterable[Step]) -> list[str]:
        """Delete steps; return the pictures that they had staged in the trash folder."""
        staged = []
        for step in steps:
            rows = self._connection.execute(
                "select after from changes where step = ?"
                " and typeof(after) = 'text' and typeof(before) = 'text'",
                (step.id,),
            )
            staged += [row["after"] for row in rows]
            self._connection.execute("delete from steps where id = ?", (step.id,))
        return staged


def lock_for_recovery(path: Path) -> sqlite3.Connection | None:
    """Become the one process that completes interrupted steps; None while another is.

    The lock is SQLite's, which ends with the connection or the process.
    """
    connection = sqlite3.connect(path, check_same_thread=False, timeout=0)
    try:
        connection.execute("begin exclusive")
    except sqlite3.Error:
        connection.close()
        return None
    return connection
