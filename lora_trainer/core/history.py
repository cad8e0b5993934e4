"""What was done to a data set, step by step, so that it can be undone, also after a restart.

A step is a list of `Change`s: a file held this before and holds that after. It is on disk, flushed, before the first file is touched, so
a process may die at any instant: whatever was begun is completed when the history is opened the next time. Captions lie in the database;
pictures that go away lie in the trash folder, under a name that says which they were.
"""
import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from .captions import content_of, remove_leftovers, replace_file, write_atomically
from .database import open_database
from .errors import Refused

log = logging.getLogger(__name__)
DATABASE = "history.sqlite3"
MOST_STEPS = 500
WRITERS = 8                        # a flush waits for the disk, not for the processor
DOING, DONE, UNDOING, UNDONE = "doing", "done", "undoing", "undone"
_TABLES = """
create table if not exists steps (id integer primary key autoincrement, label text not null, state text not null, position integer not null, at real not null);
create table if not exists changes (step integer not null references steps(id) on delete cascade, path text not null, before, after);
create index if not exists changes_of_step on changes (step);
create table if not exists automatic (path text primary key, digest text not null);
"""


@dataclasses.dataclass(frozen=True)
class Change:
    """A file, by its path in the data set, and what it holds before and after.

    bytes: a small text; str: the name in the trash folder of what lies there while it is not in place; None: there is no such file.
    """
    path: str
    before: bytes | str | None
    after: bytes | str | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What undo or redo did: the step's label, the paths that changed, and those left alone because they had changed meanwhile."""
    label: str
    paths: list[str]
    skipped: list[str]


class ChangedMeanwhile(Refused):
    """Files hold what nobody here wrote; `paths` names them."""

    def __init__(self, paths: list[str]) -> None:
        names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        super().__init__(f"Changed meanwhile by another page or program: {names}. Nothing was written.", code="changed_meanwhile")
        self.paths = paths


class History:
    """The steps of one data set: pictures in `folder`, database and trash in `home`. Safe to use from any thread of one process."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder, self._home, self.trash = folder, home, home / "trash"
        self._lock, self._running = threading.RLock(), set()
        self._database = open_database(home / DATABASE, _TABLES)
        self._recover()

    def labels(self) -> dict[str, str | None]:
        """Return what undo and redo would take back and do again: `{"undo": label, "redo": label}`, None for nothing."""
        with self._lock:
            return {"undo": (self._newest(DONE) or {"label": None})["label"], "redo": (self._oldest_undone() or {"label": None})["label"]}

    def run(self, label: str, changes: Iterable[Change]) -> list[Change]:
        """Do a whole step and return its changes; a file that does not hold what it should have held before raises `ChangedMeanwhile`."""
        with self.step(label) as apply:
            return apply(changes)

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[Callable[..., list[Change]]]:
        """Open a step that is done bit by bit; yields `apply(changes, automatic=False)`. An empty step leaves no trace.

        `automatic` marks what is written as a captioner's, until somebody changes it.
        """
        step = self._begin(label)
        try:
            yield lambda changes, automatic=False: self._apply(step, list(changes), automatic=automatic)
        finally:
            self._finish(step)

    def undo(self, *, if_changed: str = "refuse") -> Outcome:
        """Take the newest step back. `if_changed`: "refuse", "skip" or "overwrite" files that changed since.

        Raises `Refused` (code "nothing_to_undo") or `ChangedMeanwhile`, then nothing was written.
        """
        with self._lock:
            return self._turn(self._newest(DONE), "nothing_to_undo", UNDOING, UNDONE, if_changed)

    def redo(self, *, if_changed: str = "refuse") -> Outcome:
        """Do the step again that was undone last; as `undo`."""
        with self._lock:
            return self._turn(self._oldest_undone(), "nothing_to_redo", DOING, DONE, if_changed)

    def automatic(self) -> dict[str, str]:
        """Return the digests of captions that captioners wrote, by path; a file with another digest was changed by a person."""
        with self._lock:
            return {row["path"]: row["digest"] for row in self._database.execute("select * from automatic")}

    def put_aside(self, path: str) -> str:
        """Name the place in the trash folder where a file's content goes when a step takes it away; nothing is moved yet."""
        name = PurePosixPath(path)
        return f"{name.stem[:80]}.{uuid.uuid4().hex[:8]}{name.suffix}"

    def stage(self, path: str, data: bytes) -> str:
        """Put content that a step will bring into the trash folder; returns its name there."""
        key = self.put_aside(path)
        self.trash.mkdir(exist_ok=True)
        write_atomically(self.trash / key, data)
        return key

    def alive(self) -> bool:
        return (self._home / DATABASE).is_file()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    # --- Steps -----------------------------------------------------------------------------------------------------------

    def _begin(self, label: str) -> int:
        with self._lock, self._database:
            cursor = self._database.execute("insert into steps (label, state, position, at) values (?, ?, 0, ?)", (label, DOING, time.time()))
            self._running.add(cursor.lastrowid)
            return cursor.lastrowid

    def _apply(self, step: int, changes: list[Change], *, automatic: bool) -> list[Change]:
        with self._lock:
            self._refuse_changed(change for change in changes if not self._holds(change.path, change.before))
            with self._database:
                self._database.executemany("insert into changes (step, path, before, after) values (?, ?, ?, ?)",
                                           [(step, change.path, change.before, change.after) for change in changes])
                if automatic:
                    self._database.executemany("insert or replace into automatic values (?, ?)",
                                               [(change.path, digest(change.after)) for change in changes if isinstance(change.after, bytes)])
                self._forget(self._steps(UNDONE))
            self._write(changes)
        return changes

    def _finish(self, step: int) -> None:
        with self._lock, self._database:
            self._running.discard(step)
            if not self._database.execute("select 1 from changes where step = ? limit 1", (step,)).fetchone():
                self._database.execute("delete from steps where id = ?", (step,))
                return
            self._database.execute("update steps set state = ?, position = (select max(position) from steps) + 1 where id = ?", (DONE, step))
            self._forget(self._steps(DONE)[MOST_STEPS:], keep_trash=True)

    def _turn(self, step: sqlite3.Row | None, nothing: str, underway: str, ended: str, if_changed: str) -> Outcome:
        if if_changed not in ("refuse", "skip", "overwrite"):
            raise Refused(f"`if_changed` is {if_changed!r}; expected refuse, skip or overwrite.", field="if_changed", code="bad_value")
        if step is None:
            raise Refused("There is nothing to undo." if nothing.endswith("undo") else "There is nothing to do again.", code=nothing)
        changes = self._directed(step["id"], back=underway == UNDOING)
        changed = [change.path for change in changes if not self._holds(change.path, change.before) and not self._holds(change.path, change.after)]
        if changed and if_changed == "refuse":
            raise ChangedMeanwhile(changed)
        wanted = [change for change in changes if if_changed == "overwrite" or change.path not in changed]
        self._set_state(step["id"], underway)
        try:
            self._write(wanted)
        except BaseException:                                                      # the disk is full, say: it can be tried again
            self._set_state(step["id"], step["state"])
            raise
        self._set_state(step["id"], ended)
        return Outcome(step["label"], [change.path for change in wanted], changed if if_changed == "skip" else [])

    def _recover(self) -> None:
        """Complete what a process began that died in the middle of it."""
        for step in self._database.execute("select * from steps where state in (?, ?)", (DOING, UNDOING)).fetchall():
            back = step["state"] == UNDOING
            changes = [change for change in self._directed(step["id"], back=back) if self._holds(change.path, change.before) or self._lies_ready(change.after)]
            log.info("completing %r: %d files", step["label"], len(changes))
            remove_leftovers({(self._folder / row["path"]).parent for row in
                              self._database.execute("select path from changes where step = ?", (step["id"],))} | {self.trash})
            self._write(changes)
            self._set_state(step["id"], UNDONE) if back else self._finish(step["id"])

    def _directed(self, step: int, *, back: bool) -> list[Change]:
        """A step's changes in the order and direction in which they are to be made now."""
        changes = [Change(row["path"], row["before"], row["after"])
                   for row in self._database.execute("select * from changes where step = ? order by rowid", (step,))]
        return [Change(change.path, change.after, change.before) for change in reversed(changes)] if back else changes

    def _newest(self, state: str) -> sqlite3.Row | None:
        return next(iter(self._steps(state)), None)

    def _oldest_undone(self) -> sqlite3.Row | None:
        return next(iter(self._steps(UNDONE)[::-1]), None)

    def _steps(self, state: str) -> list[sqlite3.Row]:
        return self._database.execute("select * from steps where state = ? order by position desc", (state,)).fetchall()

    def _set_state(self, step: int, state: str) -> None:
        with self._database:
            self._database.execute("update steps set state = ? where id = ?", (state, step))

    def _forget(self, steps: list[sqlite3.Row], *, keep_trash: bool = False) -> None:
        """Drop steps. What undone ones had staged in the trash goes, too; what was taken away by others stays there for the user."""
        for step in steps:
            if not keep_trash:
                for row in self._database.execute("select after from changes where step = ? and typeof(after) = 'text'", (step["id"],)):
                    (self.trash / row["after"]).unlink(missing_ok=True)
            self._database.execute("delete from steps where id = ?", (step["id"],))

    # --- Files -----------------------------------------------------------------------------------------------------------

    def _refuse_changed(self, changes: Iterable[Change]) -> None:
        if paths := [change.path for change in changes]:
            raise ChangedMeanwhile(paths)

    def _holds(self, path: str, content: bytes | str | None) -> bool:
        """Tell whether a file is in the state that a change begins or ends with."""
        file = self._folder / path
        if isinstance(content, str):                                               # it is in place exactly when it is not in the trash
            return file.is_file() and not (self.trash / content).exists()
        try:
            return content_of(file) == content
        except OSError:
            return False

    def _lies_ready(self, content: bytes | str | None) -> bool:
        """Tell whether a picture that a change brings waits in the trash folder, as it does when the process died between two moves."""
        return isinstance(content, str) and (self.trash / content).is_file()

    def _write(self, changes: list[Change]) -> None:
        """Bring files from `before` to `after`: pictures one by one, for they may change places; texts several at once."""
        for change in changes:
            if isinstance(change.before, str) or isinstance(change.after, str):
                self._move(change)
        texts = [change for change in changes if not isinstance(change.before, str) and not isinstance(change.after, str)]
        with ThreadPoolExecutor(min(WRITERS, max(1, len(texts)))) as writers:
            list(writers.map(self._write_text, texts))

    def _write_text(self, change: Change) -> None:
        file = self._folder / change.path
        if change.after is None:
            file.unlink(missing_ok=True)
        else:
            write_atomically(file, change.after)

    def _move(self, change: Change) -> None:
        file = self._folder / change.path
        self.trash.mkdir(exist_ok=True)
        if change.after is None:
            if file.is_file():
                _move_file(file, self.trash / change.before)
        elif change.before is None:
            if self._lies_ready(change.after):
                if file.exists():                                                  # somebody put another file there: it is not lost either
                    _move_file(file, self.trash / self.put_aside(change.path))
                _move_file(self.trash / change.after, file)
        elif self._lies_ready(change.after):                                       # at no moment is there no picture in its place
            if not (self.trash / change.before).exists():
                _copy_file(file, self.trash / change.before)
            _move_file(self.trash / change.after, file)


def digest(data: bytes) -> str:
    """Name a text's exact content in 16 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _move_file(source: Path, target: Path) -> None:
    try:
        replace_file(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_file(source, target)
        source.unlink()


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file so that the target is whole or not there."""
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        shutil.copy2(source, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace_file(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
