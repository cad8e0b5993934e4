"""One data set while it is edited: its folder, its undo history, and what an edit reports to the
page. `editor`, `file_edits` and `table_edits` are built on it.

The truth is on disk, in the caption file beside each picture. Whoever edits a caption says which
version of it they saw, so that nothing is written over what somebody else wrote.
"""

import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.paths import is_inside
from ..dataset.caption_tables import TABLE_NAMES
from ..dataset.scan import is_picture_name, read_kohya_name
from .background_scan import BackgroundScan
from .dataset_reader import CaptionFile, DatasetReader, pictures_of
from .file_changes import Change, FileChanger
from .folder_listing import Listing
from .undo_history import ChangedMeanwhile, History, Outcome


class CaptionState(TypedDict):
    """A caption as it is on disk; `automatic` where it is as a captioner wrote it."""

    caption: str
    version: str
    automatic: bool


class CaptionChange(TypedDict):
    """What an edit would make of a caption, as JSON."""

    filename: str
    before: str
    after: str
    version: str  # of the caption file as it is now


class EditResult(TypedDict):
    """What an edit changed, as JSON for the page.

    `revision` is `revision_before` with this edit's files updated. A page whose own revision is not
    `revision_before` must reload; a later listing that differs from `revision` means that somebody
    else changed files.
    """

    label: str
    captions: dict[str, CaptionState]
    files_changed: bool
    skipped: list[str]
    history: dict[str, str | None]
    revision_before: str
    revision: str


class Replay(Protocol):
    """`History.undo` or `History.redo`."""

    def __call__(self, *, if_changed: str) -> Outcome: ...


class EditedDataset:
    """A folder of pictures with its undo history and background scan, which are kept in `home`."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()  # held from looking at the files to changing them
        self.history = History(folder, home)
        self.scan = BackgroundScan(home)
        self.reader = DatasetReader(folder, self.scan)

    def close(self) -> None:
        self.scan.close()
        self.history.close()

    @property
    def files(self) -> FileChanger:
        return self.history.files

    def relative_path(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.folder).as_posix()).decode("utf-8", "replace")

    def picture_path(self, filename: str) -> Path:
        """Return a picture's path; raises `Refused` for one that is not in the folder or in one of
        its kohya subfolders, or is a link that leads out of them.
        """
        path = self.folder / filename
        in_kohya_folder = path.parent.parent == self.folder and read_kohya_name(path.parent)
        is_in_place = path.parent == self.folder or in_kohya_folder
        if (
            not is_in_place
            or ".." in Path(filename).parts
            or not is_picture_name(path.name)
            or not self._is_file_inside(path)
        ):
            raise Refused(
                f"There is no picture {filename[:200]!r} in this data set.",
                field="filename",
                code=ErrorCode.NOT_FOUND,
            )
        return path

    def _is_file_inside(self, path: Path) -> bool:
        try:
            return path.is_file() and is_inside(path, self.folder)
        except (OSError, ValueError):  # a name that is too long, or has a NUL
            return False

    # --- Steps ------------------------------------------------------------------------------------

    def run_step(
        self,
        label: str,
        changes: Sequence[Change],
        before: Listing,
        *,
        automatic: bool = False,
    ) -> EditResult:
        """Do a step of the undo history; `before` is the listing that the changes were made from.

        Raises `Refused`, code "changed_meanwhile" or "cannot_save".
        """
        by_path = {change.path: change for change in changes}  # two pictures may share a caption
        try:
            made = self.history.run(label, list(by_path.values()), automatic=automatic)
        except ChangedMeanwhile as error:
            raise self._with_conflicts(error) from error
        except (OSError, sqlite3.Error) as error:
            raise _cannot_save(error, " Undo takes back what was.") from error
        if by_path and not made:
            raise self._with_conflicts(ChangedMeanwhile(list(by_path)))
        made_paths = {change.path for change in made}
        return self.result(
            label,
            [path for path in by_path if path in made_paths],
            before,
            skipped=[path for path in by_path if path not in made_paths],
        )

    def replay(self, replay: Replay, if_changed: str) -> EditResult:
        """Undo or redo a step."""
        with self.lock:
            before = self.reader.list_files()
            try:
                outcome = replay(if_changed=if_changed)
            except ChangedMeanwhile as error:
                raise self._with_conflicts(error) from error
            except (OSError, sqlite3.Error) as error:
                raise _cannot_save(error) from error
            return self.result(outcome.label, outcome.paths, before, skipped=outcome.skipped)

    def result(
        self, label: str, paths: Sequence[str], before: Listing, *, skipped: Sequence[str] = ()
    ) -> EditResult:
        """Return what the page gets after an edit that changed these paths."""
        now = before.after(paths)
        pictures = [filename for path in paths for filename in now.of_stem(path)]
        return {
            "label": label,
            "captions": self._caption_states(now, pictures),
            "files_changed": any(is_picture_name(path) or is_table(path) for path in paths),
            "skipped": pictures_of(skipped, now),
            "history": self.history.labels(),
            "revision_before": before.revision,
            "revision": now.revision,
        }

    def check_versions(
        self, caption_files: Mapping[str, CaptionFile], versions: Mapping[str, str]
    ) -> None:
        """Raise `Refused` when a caption file is not in the version that somebody saw."""
        changed = [
            filename
            for filename, found in caption_files.items()
            if filename in versions and versions[filename] != found.version
        ]
        if changed:
            raise self._with_conflicts(ChangedMeanwhile(changed))

    def _with_conflicts(self, error: ChangedMeanwhile) -> Refused:
        """Add to an error which captions are on disk now."""
        listing = self.reader.list_files()
        filenames = pictures_of(error.paths, listing)
        existing = [filename for filename in filenames if filename in listing.pictures]
        states = self._caption_states(listing, existing)
        conflicts = []
        for filename in filenames:
            state = states.get(filename)
            conflicts.append(
                {
                    "filename": filename,
                    "caption": state["caption"] if state else None,
                    "version": state["version"] if state else None,
                }
            )
        return Refused(error.message, code=error.code, details={"conflicts": conflicts})

    def _caption_states(
        self, listing: Listing, filenames: Sequence[str]
    ) -> dict[str, CaptionState]:
        states: dict[str, CaptionState] = {}
        for filename in filenames:
            found = self.reader.caption_file(listing, filename)
            states[filename] = {
                "caption": self.reader.caption_of(listing, filename, found),
                "version": found.version,
                "automatic": self.history.is_automatic(found.path, found.version),
            }
        return states


def is_table(path: str) -> bool:
    return path.rpartition("/")[2] in TABLE_NAMES


def _cannot_save(error: Exception, advice: str = "") -> Refused:
    reason = getattr(error, "strerror", None) or error
    return Refused(
        f"Not everything could be written: {reason}.{advice}", code=ErrorCode.CANNOT_SAVE
    )
