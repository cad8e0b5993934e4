"""The undo history of one data set: what was changed, step by step, also after a restart.

A step is a list of `Change`s. It is in the database, on disk, before the first file is touched, so
a process may die at any instant: an interrupted step is completed when the history is opened the
next time. `history_database` keeps the steps, `file_changes` carries them out.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ..base.errors import ErrorCode, Refused
from ..base.files import remove_leftovers
from .file_changes import Change, FileChanger
from .history_database import (
    DOING,
    DONE,
    UNDOING,
    UNDONE,
    HistoryDatabase,
    Step,
    lock_for_recovery,
)

log = logging.getLogger(__name__)
DATABASE = "history.sqlite3"
MOST_STEPS = 500
IF_CHANGED = ("refuse", "skip", "overwrite")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What undo or redo did: the step's label, the paths that changed, and those left alone because
    they had changed meanwhile.
    """

    label: str
    paths: list[str]
    skipped: list[str]


class ChangedMeanwhile(Refused):
    """Files hold something that no step wrote; `paths` names them."""

    def __init__(self, paths: list[str], *, gone: bool = False) -> None:
        names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        what = "Changed meanwhile by another page or program"
        if gone:
            what = "Not in the trash folder any more"
        super().__init__(f"{what}: {names}. Nothing was written.", code=ErrorCode.CHANGED_MEANWHILE)
        self.paths = paths


class ApplyChanges(Protocol):
    """Does a part of an open step, and returns the changes that were made."""

    def __call__(self, changes: Iterable[Change], *, automatic: bool = False) -> list[Change]: ...


class _Direction(NamedTuple):
    """Undo or redo: the error code for nothing to do, and the states during and after it."""

    nothing_code: str
    nothing_message: str
    underway: str
    finished: str


_UNDO = _Direction("nothing_to_undo", "There is nothing to undo.", UNDOING, UNDONE)
_REDO = _Direction("nothing_to_redo", "There is nothing to do again.", DOING, DONE)


class History:
    """The steps of one data set: pictures in `folder`, database and trash in `home`.

    Safe to use from any thread of one process.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder = folder
        self._home = home
        self._lock = threading.RLock()
        self._steps_with_changes: set[int] = set()
        self._database = HistoryDatabase(home / DATABASE)
        self.files = FileChanger(folder, home / "trash")
        self._recovery_lock = lock_for_recovery(home / "owner.sqlite3")
        if self._recovery_lock is not None:  # else a step may be going on in another process
            self._complete_interrupted()

    @property
    def trash(self) -> Path:
        return self.files.trash

    def exists(self) -> bool:
        """Tell whether the database is still on disk; a user may delete the folder."""
        return (self._home / DATABASE).is_file()

    def close(self) -> None:
        with self._lock:
            self._database.close()
            if self._recovery_lock is not None:
                self._recovery_lock.close()

    def labels(self) -> dict[str, str | None]:
        """Return the labels of the steps that undo and redo would take: `{"undo": …, "redo": …}`,
        None for nothing.
        """
        with self._lock:
            done = self._database.newest_done()
            undone = self._database.oldest_undone()
        return {
            "undo": done.label if done else None,
            "redo": undone.label if undone else None,
        }

    def run(
        self, label: str, changes: Iterable[Change], *, automatic: bool = False
    ) -> list[Change]:
        """Do a whole step and return the changes made: all but files that changed just then.

        Raises `ChangedMeanwhile`, with nothing written, for a file that does not hold `before`.
        """
        with self.step(label) as apply:
            return apply(changes, automatic=automatic)

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[ApplyChanges]:
        """Open a step that is done in parts; one without changes leaves no trace.

        `automatic` marks captions as a captioner's, until somebody changes them.
        """
        with self._lock:
            step_id = self._database.begin_step(label)

        def apply(changes: Iterable[Change], *, automatic: bool = False) -> list[Change]:
            return self._apply(step_id, list(changes), automatic=automatic)

        try:
            yield apply
        finally:
            self._finish(step_id)

    def undo(self, *, if_changed: str = "refuse") -> Outcome:
        """Take the newest step back; "refuse", "skip" or "overwrite" files that changed since.

        Raises `Refused` (code "nothing_to_undo") or `ChangedMeanwhile`; then nothing was written.
        """
        with self._lock:
            return self._replay(self._database.newest_done(), _UNDO, if_changed)

    def redo(self, *, if_changed: str = "refuse") -> Outcome:
        """Do the step again that was undone last; as `undo`."""
        with self._lock:
            return self._replay(self._database.oldest_undone(), _REDO, if_changed)

    def automatic(self) -> set[tuple[str, str]]:
        """Return (path, digest) of captions that captioners wrote.

        A caption file with another digest was changed by a person.
        """
        with self._lock:
            return self._database.automatic()

    def is_automatic(self, path: str, digest: str) -> bool:
        """Tell whether a caption file with this digest is as a captioner wrote it."""
        with self._lock:
            return self._database.is_automatic(path, digest)

    # --- Inside -----------------------------------------------------------------------------------

    def _apply(self, step_id: int, changes: list[Change], *, automatic: bool) -> list[Change]:
        with self._lock:
            changed = [
                change.path
                for change in changes
                if not self.files.holds(change.path, change.before)
            ]
            if changed:
                raise ChangedMeanwhile(changed)
            staged = self._database.add_changes(
                step_id,
                changes,
                automatic=automatic,
                forget_undone=step_id not in self._steps_with_changes,
            )
            self._steps_with_changes.add(step_id)
            self.files.delete_staged(staged)
            skipped = set(self.files.apply(changes))
            self._database.mark_written(step_id, changes, skipped=skipped)
        return [change for change in changes if change.path not in skipped]

    def _finish(self, step_id: int) -> None:
        """End a step; pictures that forgotten steps took away stay in the trash folder."""
        with self._lock:
            self._steps_with_changes.discard(step_id)
            self._database.finish_step(step_id, most_steps=MOST_STEPS)

    def _replay(self, step: Step | None, direction: _Direction, if_changed: str) -> Outcome:
        """Undo or redo a step."""
        if if_changed not in IF_CHANGED:
            raise Refused(
                f"`if_changed` is {if_changed!r}; expected refuse, skip or overwrite.",
                field="if_changed",
                code=ErrorCode.BAD_VALUE,
            )
        if step is None:
            raise Refused(direction.nothing_message, code=direction.nothing_code)
        changes = self._database.changes_of(step.id, back=direction is _UNDO)
        possible = self._possible_changes(changes, if_changed)
        pending = [change.path for change in possible]
        self._database.set_state(step.id, direction.underway, pending=pending)
        try:
            skipped = set(self.files.apply(possible, overwrite=if_changed == "overwrite"))
        except BaseException:  # for example a full disk; it can be tried again
            self._database.set_state(step.id, step.state)
            raise
        self._database.set_state(step.id, direction.finished)
        made = dict.fromkeys(path for path in pending if path not in skipped)
        left = [change.path for change in changes if change.path not in made]
        return Outcome(step.label, list(made), left)

    def _possible_changes(self, changes: list[Change], if_changed: str) -> list[Change]:
        """Return the changes that can be made; raises `ChangedMeanwhile` when some cannot, and
        `if_changed` is "refuse".

        A bundle of which one change cannot be made is left out.
        """
        unfinished = [
            change for change in changes if not self.files.holds(change.path, change.after)
        ]
        missing = self._missing_pictures(unfinished)
        changed = [
            change.path
            for change in unfinished
            if change.path not in missing and not self.files.holds(change.path, change.before)
        ]
        if (missing or changed) and if_changed == "refuse":
            raise ChangedMeanwhile([*changed, *missing], gone=not changed)
        excluded = {*missing}
        if if_changed == "skip":
            excluded.update(changed)
        excluded_bundles = {
            change.bundle or change.path for change in changes if change.path in excluded
        }
        return [
            change for change in changes if (change.bundle or change.path) not in excluded_bundles
        ]

    def _missing_pictures(self, changes: Sequence[Change]) -> dict[str, None]:
        """Return the paths whose picture is neither in the trash folder nor in another's place."""
        in_place = {
            change.before
            for change in changes
            if isinstance(change.before, str) and self.files.holds(change.path, change.before)
        }
        return {
            change.path: None
            for change in changes
            if isinstance(change.after, str)
            and not self.files.is_in_trash(change.after)
            and change.after not in in_place
        }

    def _complete_interrupted(self) -> None:
        """Complete the steps of a process that died; what cannot be completed is logged."""
        for step in self._database.interrupted():
            is_undo = step.state == UNDOING
            pending = self._database.changes_of(step.id, back=is_undo, only_pending=True)
            possible = [
                change
                for change in pending
                if self.files.holds(change.path, change.before)
                or self.files.is_in_trash(change.after)
            ]
            log.info("completing %r: %d files", step.label, len(possible))
            try:
                folders = {(self._folder / change.path).parent for change in pending}
                remove_leftovers({*folders, self.trash})
                self.files.apply(possible)
            except OSError:
                log.exception("%r could not be completed", step.label)
            if is_undo:
                self._database.set_state(step.id, UNDONE)
            else:
                self._finish(step.id)
