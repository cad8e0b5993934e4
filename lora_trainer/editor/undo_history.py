"""What was done to a data set, step by step, so that it can be undone, also after a restart.

A step is a list of `Change`s: a file held this before and holds that after. It is on disk, flushed,
before the first file is touched, so a process may die at any instant: whatever was begun is
completed when the history is opened the next time. Captions lie in the database; pictures that go
away lie in the trash folder, under a name that says which they were. Texts are written in batches
that are flushed together (atomic.py): all of a batch lie on the disk before the first of them takes
its place, and the folders are flushed before the step counts as written.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import logging
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from ..base.errors import Refused
from ..base.files import flush_folders, prepared, remove_leftovers, replace_file, write_atomically
from ..base.sqlite import open_database
from ..dataset.captions import content_of

log = logging.getLogger(__name__)
DATABASE = "history.sqlite3"
MOST_STEPS, MOST_DIGESTS = 500, 65_536
BATCH = 256  # texts that are flushed together
THREADS = 8  # they wait for the disk, or hash a picture, and leave the processor to others
DOING, DONE, UNDOING, UNDONE = "doing", "done", "undoing", "undone"
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


@dataclasses.dataclass(frozen=True)
class Change:
    """A file, by its path in the data set, and what it holds before and after.

    bytes: a small text; str: a picture, by the name it has in the trash folder while it is not in
    place (`trash_name_of`, `stage`); None: there is no such file. Changes of one `bundle` are undone
    together or not at all; one without is on its own.
    """

    path: str
    before: bytes | str | None
    after: bytes | str | None
    bundle: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What undo or redo did: the step's label, the paths that changed, and those left alone because
    they had changed meanwhile.
    """

    label: str
    paths: list[str]
    skipped: list[str]


class ChangedMeanwhile(Refused):
    """Files hold what nobody here wrote; `paths` names them."""

    def __init__(self, paths: list[str], *, gone: bool = False) -> None:
        names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        what = (
            "Not in the trash folder any more"
            if gone
            else "Changed meanwhile by another page or program"
        )
        super().__init__(f"{what}: {names}. Nothing was written.", code="changed_meanwhile")
        self.paths = paths


class History:
    """The steps of one data set: pictures in `folder`, database and trash in `home`. Safe to use
    from any thread of one process.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder, self._home, self.trash = folder, home, home / "trash"
        self._lock, self._begun = threading.RLock(), set()
        self._database = open_database(home / DATABASE, _TABLES)
        self._owner = _owner(home / "owner.sqlite3")
        if self._owner is not None:  # else what seems begun may be going on in another process
            self._recover()

    def labels(self) -> dict[str, str | None]:
        """Return what undo and redo would take back and do again: `{"undo": label, "redo": label}`,
        None for nothing.
        """
        with self._lock:
            return {
                "undo": (self._newest(DONE) or {"label": None})["label"],
                "redo": (self._oldest_undone() or {"label": None})["label"],
            }

    def run(
        self, label: str, changes: Iterable[Change], *, automatic: bool = False
    ) -> list[Change]:
        """Do a whole step; a file that does not hold what it should have held before raises
        `ChangedMeanwhile`, and nothing was written.

        Returns the changes that were made: all, but for files that changed in the very moment.
        """
        with self.step(label) as apply:
            return apply(changes, automatic=automatic)

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[Callable[..., list[Change]]]:
        """Open a step that is done bit by bit; yields `apply(changes, automatic=False)`. An empty
        step leaves no trace.

        `automatic` marks what is written as a captioner's, until somebody changes it.
        """
        step = self._begin(label)
        try:
            yield lambda changes, automatic=False: self._apply(
                step, list(changes), automatic=automatic
            )
        finally:
            self._finish(step)

    def undo(self, *, if_changed: str = "refuse") -> Outcome:
        """Take the newest step back. `if_changed`: "refuse", "skip" or "overwrite" files that
        changed since.

        Raises `Refused` (code "nothing_to_undo") or `ChangedMeanwhile`, then nothing was written.
        """
        with self._lock:
            return self._turn(self._newest(DONE), "nothing_to_undo", UNDOING, UNDONE, if_changed)

    def redo(self, *, if_changed: str = "refuse") -> Outcome:
        """Do the step again that was undone last; as `undo`."""
        with self._lock:
            return self._turn(self._oldest_undone(), "nothing_to_redo", DOING, DONE, if_changed)

    def automatic(self) -> set[tuple[str, str]]:
        """Return (path, digest) of captions that captioners wrote; a file with another digest was
        changed by a person.
        """
        with self._lock:
            return {
                (row["path"], row["digest"])
                for row in self._database.execute("select path, digest from automatic")
            }

    def is_automatic(self, path: str, content_digest: str) -> bool:
        """Tell whether a caption is as a captioner wrote it; as `automatic`, of one."""
        with self._lock:
            return (
                self._database.execute(
                    "select 1 from automatic where path = ? and digest = ?", (path, content_digest)
                ).fetchone()
                is not None
            )

    def trash_name_of(self, path: str) -> str:
        """Name the place in the trash folder where a picture goes when a step takes it away;
        nothing is moved yet. Raises OSError.
        """
        return _trash_name(path, _digest_of_file(self._folder / path))

    def trash_names_of(self, paths: Sequence[str]) -> dict[str, str]:
        """As `trash_name_of`, of many pictures; returns their places by path."""
        with ThreadPoolExecutor(THREADS) as threads:
            return dict(zip(paths, threads.map(self.trash_name_of, paths), strict=False))

    def stage(self, path: str, data: bytes) -> str:
        """Put a picture that a step will bring into the trash folder; returns its name there."""
        key = _trash_name(path, digest(data))
        self.trash.mkdir(exist_ok=True)
        write_atomically(self.trash / key, data)
        return key

    def alive(self) -> bool:
        return (self._home / DATABASE).is_file()

    def close(self) -> None:
        with self._lock:
            self._database.close()
            if self._owner is not None:
                self._owner.close()

    # --- Steps ------------------------------------------------------------------------------------

    def _begin(self, label: str) -> int:
        with self._lock, self._database:
            return self._database.execute(
                "insert into steps (label, state, position, at) select ?, ?,"
                " coalesce(max(position), 0) + 1, ? from steps",
                (label, DOING, time.time()),
            ).lastrowid

    def _apply(self, step: int, changes: list[Change], *, automatic: bool) -> list[Change]:
        with self._lock:
            if changed := [
                change.path for change in changes if not self._holds(change.path, change.before)
            ]:
                raise ChangedMeanwhile(changed)
            with self._database:
                staged = [] if step in self._begun else self._forget(self._steps(UNDONE))
                self._database.executemany(
                    "insert into changes (step, path, before, after, bundle) values (?, ?, ?,"
                    " ?, ?)",
                    [
                        (step, change.path, change.before, change.after, change.bundle)
                        for change in changes
                    ],
                )
                if automatic:
                    self._database.executemany(
                        "insert or replace into automatic values (?, ?)",
                        [
                            (change.path, digest(change.after))
                            for change in changes
                            if isinstance(change.after, bytes)
                        ],
                    )
            self._begun.add(step)
            self._clear(staged)
            skipped = set(self._write(changes))
            with self._database:
                self._database.executemany(
                    "delete from changes where step = ? and path = ?",
                    [(step, path) for path in skipped],
                )
                self._database.executemany(
                    "update changes set written = 1 where step = ? and path = ?",
                    [(step, change.path) for change in changes],
                )
        return [change for change in changes if change.path not in skipped]

    def _finish(self, step: int) -> None:
        with self._lock, self._database:
            self._begun.discard(step)
            if not self._database.execute(
                "select 1 from changes where step = ? limit 1", (step,)
            ).fetchone():
                self._database.execute("delete from steps where id = ?", (step,))
                return
            self._database.execute("update steps set state = ? where id = ?", (DONE, step))
            self._forget(
                self._steps(DONE)[MOST_STEPS:]
            )  # what they took away stays in the trash for the user

    def _turn(
        self, step: sqlite3.Row | None, nothing: str, underway: str, ended: str, if_changed: str
    ) -> Outcome:
        if if_changed not in ("refuse", "skip", "overwrite"):
            raise Refused(
                f"`if_changed` is {if_changed!r}; expected refuse, skip or overwrite.",
                field="if_changed",
                code="bad_value",
            )
        if step is None:
            raise Refused(
                (
                    "There is nothing to undo."
                    if nothing.endswith("undo")
                    else "There is nothing to do again."
                ),
                code=nothing,
            )
        changes = self._directed(step["id"], back=underway == UNDOING)
        gone, changed = self._obstacles(changes)
        if (gone or changed) and if_changed == "refuse":
            raise ChangedMeanwhile([*changed, *gone], gone=bool(gone and not changed))
        left = {*gone, *(changed if if_changed == "skip" else ())}
        out = {change.bundle or change.path for change in changes if change.path in left}
        wanted = [change for change in changes if (change.bundle or change.path) not in out]
        self._set_state(step["id"], underway, pending=[change.path for change in wanted])
        try:
            skipped = set(self._write(wanted, overwrite=if_changed == "overwrite"))
        except BaseException:  # the disk is full, say: it can be tried again
            self._set_state(step["id"], step["state"])
            raise
        self._set_state(step["id"], ended)
        paths = {change.path: None for change in wanted if change.path not in skipped}
        return Outcome(
            step["label"],
            list(paths),
            [change.path for change in changes if change.path not in paths],
        )

    def _obstacles(self, changes: list[Change]) -> tuple[list[str], list[str]]:
        """Return the paths whose picture is neither in place nor in the trash, and those that hold
        what nobody here wrote.
        """
        open_ones = [change for change in changes if not self._holds(change.path, change.after)]
        comes_from = {
            change.before
            for change in open_ones
            if isinstance(change.before, str) and self._holds(change.path, change.before)
        }
        gone = {
            change.path: None
            for change in open_ones
            if isinstance(change.after, str)
            and not self._lies_ready(change.after)
            and change.after not in comes_from
        }
        return list(gone), [
            change.path
            for change in open_ones
            if change.path not in gone and not self._holds(change.path, change.before)
        ]

    def _recover(self) -> None:
        """Complete what a process began that died in the middle of it; what cannot be completed
        does not lock anybody out.
        """
        for step in self._database.execute(
            "select * from steps where state in (?, ?)", (DOING, UNDOING)
        ).fetchall():
            back = step["state"] == UNDOING
            pending = self._directed(step["id"], back=back, pending=True)
            changes = [
                change
                for change in pending
                if self._holds(change.path, change.before) or self._lies_ready(change.after)
            ]
            log.info("completing %r: %d files", step["label"], len(changes))
            try:
                folders = {*((self._folder / change.path).parent for change in pending), self.trash}
                remove_leftovers(folders)
                self._write(changes)
            except OSError:
                log.exception("%r could not be completed", step["label"])
            self._set_state(step["id"], UNDONE) if back else self._finish(step["id"])

    def _directed(self, step: int, *, back: bool, pending: bool = False) -> list[Change]:
        """A step's changes, or only those that are still to be written, in the order and direction
        in which they are to be made now.
        """
        rows = self._database.execute(
            "select * from changes where step = ? and written <= ? order by rowid",
            (step, 0 if pending else 1),
        )
        changes = [Change(row["path"], row["before"], row["after"], row["bundle"]) for row in rows]
        return (
            [
                dataclasses.replace(change, before=change.after, after=change.before)
                for change in reversed(changes)
            ]
            if back
            else changes
        )

    def _newest(self, state: str) -> sqlite3.Row | None:
        return self._database.execute(
            "select * from steps where state = ? order by position desc limit 1", (state,)
        ).fetchone()

    def _oldest_undone(self) -> sqlite3.Row | None:
        return self._database.execute(
            "select * from steps where state = ? order by position limit 1", (UNDONE,)
        ).fetchone()

    def _steps(self, state: str) -> list[sqlite3.Row]:
        return self._database.execute(
            "select * from steps where state = ? order by position desc", (state,)
        ).fetchall()

    def _set_state(self, step: int, state: str, *, pending: Iterable[str] = ()) -> None:
        """Set a step's state, and which of its paths are still to be written."""
        with self._database:
            self._database.execute("update steps set state = ? where id = ?", (state, step))
            self._database.execute("update changes set written = 1 where step = ?", (step,))
            self._database.executemany(
                "update changes set written = 0 where step = ? and path = ?",
                [(step, path) for path in pending],
            )

    def _forget(self, steps: list[sqlite3.Row]) -> list[str]:
        """Drop steps; returns the names of what they had staged in the trash, of which there is no
        more need if they were undone.
        """
        staged = []
        for step in steps:
            rows = self._database.execute(
                "select after from changes where step = ? and typeof(after) = 'text' and"
                " typeof(before) = 'text'",
                (step["id"],),
            )
            staged += [row["after"] for row in rows]
            self._database.execute("delete from steps where id = ?", (step["id"],))
        return staged

    def _clear(self, staged: Iterable[str]) -> None:
        for key in staged:
            (self.trash / key).unlink(missing_ok=True)

    # --- Files ------------------------------------------------------------------------------------

    def _holds(self, path: str, content: bytes | str | None) -> bool:
        """Tell whether a file is in the state that a change begins or ends with."""
        file = self._folder / path
        try:
            if isinstance(content, str):
                return file.is_file() and _digest_of_file(file) == _digest_in(content)
            return content_of(file) == content
        except OSError:
            return False

    def _lies_ready(self, content: bytes | str | None) -> bool:
        """Tell whether a picture that a change brings waits in the trash folder."""
        return isinstance(content, str) and (self.trash / content).is_file()

    def _write(self, changes: list[Change], *, overwrite: bool = False) -> list[str]:
        """Bring files from `before` to `after`: pictures one by one, for they may change places;
        texts in batches.

        Returns the paths of texts that were left alone, because they had changed since they were
        looked at; `overwrite` puts those aside.
        """
        for change in changes:
            if isinstance(change.before, str) or isinstance(change.after, str):
                self._move(change)
        texts = [
            change
            for change in changes
            if not isinstance(change.before, str) and not isinstance(change.after, str)
        ]
        skipped = []
        for at in range(0, len(texts), BATCH):
            skipped += self._write_texts(texts[at : at + BATCH], overwrite=overwrite)
        flush_folders({(self._folder / change.path).parent for change in changes})
        return skipped

    def _write_texts(self, changes: list[Change], *, overwrite: bool) -> list[str]:
        files = {change.path: self._folder / change.path for change in changes}
        wanted = [change for change in changes if content_of(files[change.path]) != change.after]
        for folder in {files[change.path].parent for change in wanted if change.after is not None}:
            folder.mkdir(parents=True, exist_ok=True)

        def put(change: Change) -> bool:
            file = files[change.path]
            current = content_of(file)  # now: the flush has taken its time
            if current not in (change.before, change.after):
                if not overwrite:
                    return False
                self.stage(change.path, current or b"")  # the other's text is not lost either
            _put(temporaries.get(file), file)
            return True

        with (
            prepared(
                {files[change.path]: change.after for change in wanted if change.after is not None}
            ) as temporaries,
            ThreadPoolExecutor(THREADS) as threads,
        ):  # what is replaced is taken off the disk, which may wait
            done = list(threads.map(put, wanted))
        return [
            change.path
            for change, put_in_place in zip(wanted, done, strict=False)
            if not put_in_place
        ]

    def _move(self, change: Change) -> None:
        file, comes = self._folder / change.path, isinstance(change.after, str)
        if self._holds(change.path, change.after) or (comes and not self._lies_ready(change.after)):
            return
        for folder in (self.trash, file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            ours = isinstance(change.before, str) and self._holds(change.path, change.before)
            aside = self.trash / (change.before if ours else self.trash_name_of(change.path))
            (_copy_file if comes else _move_file)(
                file, aside
            )  # at no moment is there no picture in its place
        if comes:
            _move_file(self.trash / change.after, file)


def _put(temporary: Path | None, file: Path) -> None:
    """Let a prepared file take its place, or take the file away."""
    if temporary is None:
        file.unlink(missing_ok=True)
    else:
        replace_file(temporary, file)


def digest(data: bytes) -> str:
    """Name a text's exact content in 16 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _trash_name(path: str, content_digest: str) -> str:
    """Name a place in the trash: readable, and telling the content; no two are the same."""
    name = PurePosixPath(path)
    stem = os.fsencode(name.stem)[:160].decode("utf-8", "ignore")  # a name has 255 bytes at most
    return f"{stem}.{content_digest}{uuid.uuid4().hex[:8]}{name.suffix}"


def _digest_in(key: str) -> str:
    return key.rsplit(".", 2)[-2][:16]


def _digest_of_file(file: Path) -> str:
    stat = file.stat()
    return _digest_at(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=MOST_DIGESTS)
def _digest_at(file: Path, mtime_ns: int, size: int) -> str:
    content = hashlib.blake2b(digest_size=8)
    try:
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                content.update(block)
    except PermissionError:  # it may be moved all the same, and is known again by these
        content.update(f"{mtime_ns}/{size}".encode())
    return content.hexdigest()


def _owner(path: Path) -> sqlite3.Connection | None:
    """Become the one process that completes broken-off steps; None while another is. A lock of
    SQLite's ends with the process.
    """
    connection = sqlite3.connect(path, check_same_thread=False, timeout=0)
    try:
        connection.execute("begin exclusive")
    except sqlite3.Error:
        connection.close()
        return None
    return connection


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
