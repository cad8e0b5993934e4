"""Edits of the files of one data set: pictures are renamed, rotated and moved to the trash folder,
each together with its caption file and as one step of the undo history.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..base.text import counted
from ..dataset.captions import in_table, sidecar, to_bytes
from . import picture_files
from .dataset_reader import CaptionFile, picture_in
from .edited_dataset import EditedDataset, EditResult
from .file_changes import Change
from .file_names import safe_filename
from .folder_listing import Listing


class RenameResult(EditResult):
    """An edit's result, and the picture's new name."""

    filename: str


class FileEdits:
    """Renames, rotates and deletes pictures."""

    def __init__(self, dataset: EditedDataset) -> None:
        self._dataset = dataset

    def rename(self, filename: str, to: str) -> RenameResult:
        """Rename a picture and its caption file; the ending stays.

        Raises `Refused`, code "exists" when the name is taken.
        """
        dataset = self._dataset
        with dataset.lock:
            listing = dataset.reader.list_files()
            path = picture_in(listing, filename)
            caption_file = dataset.reader.caption_file(listing, filename)
            new_path = _renamed(path, to)
            if new_path == path:
                return {**dataset.result("", [], listing), "filename": filename}
            self._check_free(new_path, listing)
            changes = self._changes_to_rename(filename, path, new_path, listing)
            if caption_file.content is None:
                changes += self._caption_from_table(filename, path, new_path, listing)
            result = dataset.run_step(
                f"Rename {path.name} to {new_path.name}",
                changes,
                listing,
                automatic=dataset.history.is_automatic(caption_file.path, caption_file.version),
            )
            return {**result, "filename": dataset.relative_path(new_path)}

    def rotate(self, filenames: Sequence[str], degrees: int) -> EditResult:
        """Turn pictures clockwise by 90, 180 or 270 degrees; undo restores the original files."""
        dataset = self._dataset
        with dataset.lock:
            listing = dataset.reader.list_files()
            rotated = {
                filename: picture_files.rotated(picture_in(listing, filename), degrees)
                for filename in dict.fromkeys(filenames)
            }
            changes = []
            for filename, data in rotated.items():
                before = dataset.files.trash_name_of(filename)
                after = dataset.files.stage(filename, data)
                changes.append(Change(filename, before, after))
            return dataset.run_step(f"Rotate {counted(len(rotated), 'picture')}", changes, listing)

    def move_to_trash(self, filenames: Sequence[str]) -> EditResult:
        """Move pictures, with their caption files, into the trash folder."""
        dataset = self._dataset
        with dataset.lock:
            listing = dataset.reader.list_files()
            deleted = dict.fromkeys(filenames)
            for filename in deleted:
                picture_in(listing, filename)
            trash_names = dataset.files.trash_names_of(list(deleted))
            changes = []
            for filename in deleted:
                changes.append(Change(filename, trash_names[filename], None, filename))
                for file in dataset.reader.caption_files(listing, filename):
                    changes += _without_caption(file, deleted, listing, bundle=filename)
            return dataset.run_step(f"Delete {counted(len(deleted), 'picture')}", changes, listing)

    def empty_trash(self) -> int:
        """Delete the files in the trash folder, so that their steps cannot be undone any more.

        Returns the bytes that were freed. Raises OSError.
        """
        trash = self._dataset.history.trash
        with self._dataset.lock:
            if not trash.is_dir():
                return 0
            files = [path for path in trash.glob("*") if path.is_file() and not path.is_symlink()]
            freed_bytes = sum(path.stat().st_size for path in files)
            for path in files:
                path.unlink()
        return freed_bytes

    # --- Renaming ---------------------------------------------------------------------------------

    def _check_free(self, new_path: Path, listing: Listing) -> None:
        """Raise `Refused` for the name of a file that exists, or of another picture's caption."""
        new_caption = sidecar(new_path)
        same_stem = listing.of_stem(self._dataset.relative_path(new_caption))
        if new_path.exists():
            taken = new_path.name
        elif new_caption.exists():
            taken = new_caption.name
        elif same_stem:
            taken = same_stem[0]
        else:
            return
        raise Refused(
            f"There is already {taken} in this data set.", field="to", code=ErrorCode.EXISTS
        )

    def _changes_to_rename(
        self, filename: str, path: Path, new_path: Path, listing: Listing
    ) -> list[Change]:
        dataset = self._dataset
        picture = dataset.files.trash_name_of(filename)
        changes = [
            Change(filename, picture, None, filename),
            Change(dataset.relative_path(new_path), None, picture, filename),
        ]
        for file in dataset.reader.caption_files(listing, filename):
            new_caption = dataset.relative_path(new_path.with_suffix(Path(file.path).suffix))
            changes += _without_caption(file, {filename}, listing, bundle=filename)
            changes.append(Change(new_caption, None, file.content, filename))
        return changes

    def _caption_from_table(
        self, filename: str, path: Path, new_path: Path, listing: Listing
    ) -> list[Change]:
        """Write a caption that is only in a table, under the old name, into a caption file."""
        caption = in_table(path, self._dataset.reader.table(listing, filename).captions)
        content = to_bytes(caption or "")
        if not content:
            return []
        return [Change(self._dataset.relative_path(sidecar(new_path)), None, content, filename)]


def _renamed(path: Path, to: str) -> Path:
    if re.search(r"[\\/]", to):
        raise Refused(
            f"{to[:80]!r} names a folder; pictures stay in theirs. Give a name without slashes.",
            field="to",
            code=ErrorCode.BAD_NAME,
        )
    stem = to[: -len(path.suffix)] if to.lower().endswith(path.suffix.lower()) else to
    return path.with_name(safe_filename(f"{stem.strip()}{path.suffix}"))


def _without_caption(
    file: CaptionFile, deleted: Collection[str], listing: Listing, *, bundle: str
) -> list[Change]:
    """Delete a caption file, unless a picture that stays uses it, too."""
    is_used = any(filename not in deleted for filename in listing.of_stem(file.path))
    if file.content is None or is_used:
        return []
    return [Change(file.path, file.content, None, bundle)]
