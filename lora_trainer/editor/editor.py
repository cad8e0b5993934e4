"""One data set on the page: its pictures with their captions, and edits of captions, each a step
that can be undone.

`DataSetEditor.files`, `.tables` and `.pictures` are the edits of files and of caption tables, and
what is shown of single pictures.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict
from urllib.parse import quote

from ..base.errors import ErrorCode, Refused
from ..dataset.captions import (
    LARGEST_CAPTION_BYTES,
    can_be_caption,
    sidecar,
    split_tags,
    text_of,
    to_bytes,
)
from ..dataset.sample import Picture
from .bulk_edits import EditSettings, label_of, plan_edit
from .dataset_reader import CaptionFile, ProblemRow
from .edited_dataset import CaptionChange, EditedDataset, EditResult
from .file_changes import Change
from .file_edits import FileEdits
from .folder_listing import Listing
from .picture_views import CountTokens, PictureViews
from .table_edits import TableEdits


class PictureRow(TypedDict):
    """A picture on the page; `warnings` come from the picture file itself."""

    filename: str
    width: int
    height: int
    caption: str
    tags: list[str]
    version: str
    automatic: bool
    repeats: int
    warnings: list[str]
    thumbnail: str


class DataSetState(TypedDict):
    revision: str  # a name for the state of all pictures, captions and tables on disk
    history: dict[str, str | None]  # what can be undone and redone


class DataSetView(DataSetState):
    """A data set on the page; `trash` is its trash folder, where there is one."""

    name: str
    path: str
    trash: str | None
    pictures: list[PictureRow]
    problems: list[ProblemRow]


class BulkEditPreview(TypedDict):
    changes: list[CaptionChange]
    count: int
    unchanged: int


class BulkEditResult(EditResult):
    count: int


class WriteCaptions(Protocol):
    """Writes captions by file name, and returns the pictures whose caption was written.

    With `keep_manual` a caption that a person wrote or changed is left alone.
    """

    def __call__(self, captions: Mapping[str, str], *, keep_manual: bool = True) -> list[str]: ...


class DataSetEditor:
    """The pictures in `folder`; history, trash and thumbnails are kept in `home`.

    Safe to use from any thread. `count_tokens` counts the CLIP tokens of captions, or returns None
    while it is not ready.
    """

    def __init__(
        self, name: str, folder: Path, home: Path, *, count_tokens: CountTokens | None = None
    ) -> None:
        self.name = name
        self.folder = folder
        self._dataset = EditedDataset(folder, home)
        self.files = FileEdits(self._dataset)
        self.tables = TableEdits(self._dataset, self.set_captions)
        self.pictures = PictureViews(self._dataset, count_tokens)

    def exists(self) -> bool:
        """Tell whether the history is still on disk; a user may have deleted the folder and made
        it anew.
        """
        return self._dataset.history.exists()

    def close(self) -> None:
        self._dataset.close()

    # --- What is there ----------------------------------------------------------------------------

    def describe(self) -> DataSetView:
        """Describe the data set, and its pictures by their headers; none is decoded."""
        reader, history = self._dataset.reader, self._dataset.history
        listing = reader.list_files()
        pictures, problems = reader.scan(listing)
        unusable: list[ProblemRow] = [
            {"filename": self._dataset.relative_path(problem.path), "reason": problem.reason}
            for problem in problems
        ]
        return {
            "name": self.name,
            "path": str(self.folder),
            "revision": listing.revision,
            "history": history.labels(),
            "trash": str(history.trash) if history.trash.is_dir() else None,
            "pictures": self._picture_rows(listing, pictures),
            "problems": [*reader.bad_tables(listing), *unusable],
        }

    def revision(self) -> str:
        """Return a name for the state of all pictures, captions and tables on disk."""
        return self._dataset.reader.list_files().revision

    def state(self) -> DataSetState:
        return {"revision": self.revision(), "history": self._dataset.history.labels()}

    def captions(self) -> dict[str, str]:
        """Return every usable picture's caption, by file name."""
        reader = self._dataset.reader
        return reader.captions(reader.list_files())

    def picture_path(self, filename: str) -> Path:
        """Return a picture's path; raises `Refused` for one that is not in this data set."""
        return self._dataset.picture_path(filename)

    def _picture_rows(self, listing: Listing, pictures: Mapping[str, Picture]) -> list[PictureRow]:
        automatic = self._dataset.history.automatic()
        versions = self._dataset.reader.versions(listing)
        rows: list[PictureRow] = []
        for filename, picture in pictures.items():
            if filename not in versions or filename not in listing.files:
                continue  # it was deleted, or its caption file cannot be read
            caption_file = versions[filename]
            modified_ms = listing.files[filename].st_mtime_ns // 1_000_000
            path = f"datasets/{quote(self.name)}/thumbnails/{quote(filename)}"
            rows.append(
                {
                    "filename": filename,
                    "width": picture.width,
                    "height": picture.height,
                    "caption": picture.caption,
                    "tags": split_tags(picture.caption),
                    "version": caption_file.version,
                    "automatic": caption_file in automatic,
                    "repeats": picture.repeats,
                    "warnings": list(picture.warnings),
                    "thumbnail": f"{path}?{modified_ms}",
                }
            )
        return rows

    # --- Captions ---------------------------------------------------------------------------------

    def set_captions(
        self,
        captions: Mapping[str, str],
        *,
        versions: Mapping[str, str] | None = None,
        label: str = "",
    ) -> EditResult:
        """Write captions by file name, as one step; all are checked before the first is written.

        Raises `Refused`: code "not_found", "bad_value", or "changed_meanwhile", with the captions
        on disk, when one is not in the version of `versions` any more.
        """
        with self._dataset.lock:
            reader = self._dataset.reader
            listing = reader.list_files()
            files = {filename: reader.caption_file(listing, filename) for filename in captions}
            for filename, caption in captions.items():
                check_caption(filename, caption)
            self._dataset.check_versions(files, versions or {})
            contents = {filename: to_bytes(caption) for filename, caption in captions.items()}
            _check_shared_files(files, contents)
            changes = [
                Change(file.path, file.content, contents[filename])
                for filename, file in files.items()
                if file.content != contents[filename]
            ]
            return self._dataset.run_step(label or _default_label(captions), changes, listing)

    def bulk_edit(
        self,
        action: str,
        settings: EditSettings,
        *,
        filenames: Sequence[str] | None = None,
        preview: bool = False,
        versions: Mapping[str, str] | None = None,
    ) -> BulkEditPreview | BulkEditResult:
        """Edit all captions, or those of `filenames`, by an action of `bulk_edits`, as one step;
        with `preview` nothing is written.
        """
        with self._dataset.lock:
            seen_versions, everything = self._dataset.reader.versions_and_captions()
            captions = everything
            if filenames is not None:
                captions = _captions_of(filenames, everything)
            edited = plan_edit(action, captions, settings, everything=everything)
            if preview:
                changes: list[CaptionChange] = [
                    {
                        "filename": filename,
                        "before": captions[filename],
                        "after": after,
                        "version": seen_versions.get(filename, ""),
                    }
                    for filename, after in edited.items()
                ]
                unchanged = len(captions) - len(changes)
                return {"changes": changes, "count": len(changes), "unchanged": unchanged}
            result = self.set_captions(
                edited,
                versions={**seen_versions, **(versions or {})},
                label=label_of(action, settings, len(edited)),
            )
            return {**result, "count": len(edited)}

    @contextlib.contextmanager
    def captioning(self, label: str) -> Iterator[WriteCaptions]:
        """Let a captioner write captions, bit by bit, together one step."""
        with self._dataset.history.step(label) as apply:

            def write(captions: Mapping[str, str], *, keep_manual: bool = True) -> list[str]:
                with self._dataset.lock:
                    changes = self._automatic_changes(captions, keep_manual=keep_manual)
                    by_path = {change.path: change for change in changes.values()}
                    applied = apply(list(by_path.values()), automatic=True)
                    written = {change.path for change in applied}
                    return [
                        filename for filename, change in changes.items() if change.path in written
                    ]

            yield write

    def undo(self, *, if_changed: str = "refuse") -> EditResult:
        return self._dataset.replay(self._dataset.history.undo, if_changed)

    def redo(self, *, if_changed: str = "refuse") -> EditResult:
        return self._dataset.replay(self._dataset.history.redo, if_changed)

    def _automatic_changes(
        self, captions: Mapping[str, str], *, keep_manual: bool
    ) -> dict[str, Change]:
        changes: dict[str, Change] = {}
        for filename, caption in captions.items():
            # a picture that was deleted or renamed meanwhile is left out
            with contextlib.suppress(Refused):
                path = self.picture_path(filename)
                file = self._dataset.reader.read_caption_file(filename, sidecar(path))
                if not (keep_manual and self._is_manual(file)):
                    changes[filename] = Change(file.path, file.content, to_bytes(caption))
        return changes

    def _is_manual(self, file: CaptionFile) -> bool:
        """Tell whether a caption file holds text that a person wrote or changed."""
        if file.content is None or self._dataset.history.is_automatic(file.path, file.version):
            return False
        return bool(text_of(file.content))


def check_caption(filename: str, caption: object) -> None:
    """Raise `Refused` for what cannot be stored as a caption."""
    if not can_be_caption(caption):
        raise Refused(
            f"The caption of {filename} is not text of at most {LARGEST_CAPTION_BYTES // 1000} kB.",
            field="changes",
            code=ErrorCode.BAD_VALUE,
        )


def _check_shared_files(files: Mapping[str, CaptionFile], contents: Mapping[str, bytes]) -> None:
    """Raise `Refused` when pictures that share a caption file are given different captions."""
    first: dict[str, bytes] = {}
    for filename, file in files.items():
        if first.setdefault(file.path, contents[filename]) != contents[filename]:
            raise Refused(
                f"{filename} shares its caption file {file.path} with another picture, which was"
                " given another caption.",
                field="changes",
                code=ErrorCode.BAD_VALUE,
            )


def _captions_of(filenames: Sequence[str], everything: Mapping[str, str]) -> dict[str, str]:
    for filename in filenames:
        if filename not in everything:
            raise Refused(
                f"There is no picture {str(filename)[:200]!r} in this data set.",
                field="filenames",
                code=ErrorCode.NOT_FOUND,
            )
    return {filename: everything[filename] for filename in filenames}


def _default_label(captions: Mapping[str, str]) -> str:
    if len(captions) == 1:
        return f"Caption of {next(iter(captions))}"
    return f"{len(captions)} captions"
