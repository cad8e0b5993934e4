"""Data sets by name: folders under the data folder, or any folder that the user names.

datasets/<name>/                pictures and captions
datasets/<name>/.train_lora/    history, trash and thumbnails, and folder.json when the data set is
                                a folder elsewhere

Editing a data set is in `editor`, what is uploaded into one in `uploads`.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..base.paths import expand_user
from ..base.text import is_plain_text
from ..dataset.captions import read_caption, sidecar
from ..dataset.scan import is_picture_name, picture_folders
from ..settings.lora_name import why_not_a_name
from . import uploads
from .dataset_reader import UnusableFile
from .editor import DataSetEditor, DataSetView, WriteCaptions, check_caption
from .picture_files import prompt_of
from .picture_views import CountTokens
from .upload_rules import is_prompt_note, largest_upload_bytes, save_upload, uploadable_name
from .zip_archive import ZipArchive

LONGEST_NAME_BYTES = 240
HOME_NAME = ".train_lora"


class DataSetSummary(TypedDict):
    """A data set in the list; its path is "" when the folder cannot be read."""

    name: str
    path: str
    pictures: int


class Library:
    """The data sets of one data folder.

    `check_path` raises `Refused` for a folder that may not be read by whoever asks.
    """

    def __init__(
        self,
        folder: Path,
        check_path: Callable[[Path], None] = lambda path: None,
        *,
        count_tokens: CountTokens | None = None,
    ) -> None:
        self._folder = folder
        self._check_path = check_path
        self._count_tokens = count_tokens
        self._editors: dict[str, DataSetEditor] = {}
        self._lock = threading.Lock()  # of the editors
        self._upload_lock = threading.Lock()  # held while a file is written under a free name

    def close(self) -> None:
        with self._lock:
            for editor in self._editors.values():
                editor.close()
            self._editors.clear()

    # --- Names and folders ------------------------------------------------------------------------

    def all(self) -> list[DataSetSummary]:
        """Return every data set, by name."""
        folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return [
            self._summary(folder.name)
            for folder in folders
            if folder.is_dir() and not folder.name.startswith(".")
        ]

    def create(self, name: str | None, path: str | None = None) -> DataSetSummary:
        """Make an empty data set, or one of a folder elsewhere; an existing one of that name is
        returned as it is. Raises `Refused`.
        """
        elsewhere = self._readable_folder(path) if path else None
        if not name:
            name = elsewhere.name if elsewhere else self._free_name("pictures")
        name = _checked_name(name)
        if elsewhere and (self._folder / name).is_dir() and self.path(name) != elsewhere:
            name = self._free_name(name)
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        if elsewhere:
            self._home(name).mkdir(exist_ok=True)
            pointer = json.dumps({"path": str(elsewhere)}, ensure_ascii=False)
            write_atomically(self._home(name) / "folder.json", pointer.encode("utf-8"))
        return self._summary(name)

    def path(self, name: str) -> Path:
        """Return the folder of a data set; raises `Refused` (code "not_found")."""
        folder = self._folder / name
        if not _can_be_name(name) or not folder.is_dir():
            raise Refused(
                f"There is no data set called {name!r}.",
                field="train_data_dir",
                code=ErrorCode.NOT_FOUND,
            )
        pointer = self._home(name) / "folder.json"
        if pointer.is_file():
            elsewhere = _folder_in(pointer, name)
            self._check_path(elsewhere)  # it may have been added by somebody who may read more
            return elsewhere
        if folder.is_symlink():
            self._check_path(folder)
        return folder

    def resolve(self, name_or_folder: str) -> Path:
        """Return the folder that a user means: a data set's name first, else a path."""
        if _can_be_name(name_or_folder) and (self._folder / name_or_folder).is_dir():
            return self.path(name_or_folder)
        folder = expand_user(name_or_folder)
        self._check_path(folder)
        return folder

    def _home(self, name: str) -> Path:
        """Return the folder of what is kept about a data set."""
        return self._folder / name / HOME_NAME

    def _summary(self, name: str) -> DataSetSummary:
        try:
            folder = self.path(name)
            files = (path for place in picture_folders(folder) for path in place.iterdir())
            count = sum(is_picture_name(file.name) for file in files)
        except (OSError, Refused):
            return {"name": name, "path": "", "pictures": 0}
        return {"name": name, "path": str(folder), "pictures": count}

    def _readable_folder(self, path: str) -> Path:
        """Return a folder that a user names, links followed; raises `Refused` (code "no_folder")
        when there is none or it cannot be read.
        """
        folder = expand_user(path.strip().strip('"'))
        self._check_path(folder)
        if reason := _why_unreadable(folder):
            raise Refused(reason, field="path", code=ErrorCode.NO_FOLDER)
        return folder.resolve()

    def _free_name(self, name: str) -> str:
        if not (self._folder / name).exists():
            return name
        number = 2
        while (self._folder / f"{name}-{number}").exists():
            number += 1
        return f"{name}-{number}"

    # --- Editors ----------------------------------------------------------------------------------

    def open(self, name: str) -> DataSetEditor:
        """Return the editor of a data set; raises `Refused` (code "not_found")."""
        folder = self.path(name)
        with self._lock:
            editor = self._editors.get(name)
            if editor is not None and editor.folder == folder and editor.exists():
                return editor
            if editor is not None:
                editor.close()
            self._editors[name] = self._make_editor(name, folder)
            return self._editors[name]

    def _make_editor(self, name: str, folder: Path) -> DataSetEditor:
        home = self._home(name)
        try:
            return DataSetEditor(name, folder, home, count_tokens=self._count_tokens)
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise Refused(
                f"The history of {name} cannot be written in {home}: {reason}.",
                code=ErrorCode.CANNOT_SAVE,
            ) from error

    def describe(self, name: str) -> DataSetView:
        """As `DataSetEditor.describe`."""
        return self.open(name).describe()

    def picture_path(self, name: str, filename: str) -> Path:
        """As `DataSetEditor.picture_path`."""
        return self.open(name).picture_path(filename)

    def captioning(self, name: str, label: str) -> AbstractContextManager[WriteCaptions]:
        """As `DataSetEditor.captioning`."""
        return self.open(name).captioning(label)

    # --- Uploads ----------------------------------------------------------------------------------

    def add(self, name: str, filename: str, data: bytes) -> str:
        """Save an uploaded picture or caption and return its name; raises `Refused`."""
        return self._save(self.path(name), PurePosixPath(uploadable_name(filename)), data)

    def add_archive(self, name: str, filename: str, file: BinaryIO) -> uploads.UploadResult:
        """Add the pictures and captions of a ZIP, each by the rules of `add`.

        Raises `Refused` for one that cannot be read at all.
        """
        archive = ZipArchive(file, re.split(r"[\\/]", filename)[-1][:80])
        return self._add_files(name, uploads.files_of_zip(archive), archive_name=archive.name)

    def add_folder(
        self, name: str, path: str, *, with_prompts: bool = False, create: bool = False
    ) -> uploads.UploadResult:
        """Add copies of the pictures and captions in a folder and those below it, such as the
        WebUI's output folder; as `add_archive`.

        With `with_prompts` the captions come from the prompts in the pictures, so .txt files with
        the same prompts are left out. With `create` a missing data set is made, once the folder was
        found.
        """
        folder = self._readable_folder(path)
        is_new = create and not (self._folder / _checked_name(name)).exists()
        target = (self._folder / name if is_new else self.path(name)).resolve()
        if target.is_relative_to(folder) or folder.is_relative_to(target):
            raise Refused(
                f"{folder} and the data set {name} are one within the other. Choose another"
                " folder.",
                field="folder",
                code=ErrorCode.TWICE,
            )
        files = uploads.files_of_folder(folder)
        if create:
            self.create(name)
        if with_prompts:
            files = [file for file in files if not is_prompt_note(file)]
        return self._add_files(name, files)

    def _add_files(
        self, name: str, files: list[uploads.SourceFile], *, archive_name: str = ""
    ) -> uploads.UploadResult:
        folder = self.path(name)
        return uploads.store_files(
            files,
            lambda path, data: self._save(folder, path, data),
            lambda filename: largest_upload_bytes(uploadable_name(filename)),
            archive_name=archive_name,
        )

    def _save(self, folder: Path, path: PurePosixPath, data: bytes) -> str:
        return save_upload(folder, path, data, lock=self._upload_lock)

    def add_captions_from_prompts(self, name: str, filenames: Sequence[str]) -> list[UnusableFile]:
        """Give pictures without a caption the prompt that the WebUI wrote into them, as one step.

        Returns `{filename, reason}` of those whose prompt cannot be their caption; the others are
        written.
        """
        editor = self.open(name)
        prompts: dict[str, str] = {}
        prompt_of_caption_file: dict[Path, str] = {}
        refused: list[UnusableFile] = []
        for filename in filenames:
            if not is_picture_name(Path(filename).name):
                continue
            filename = Path(filename).as_posix()
            try:
                path = editor.picture_path(filename)
                prompt = _prompt_for(path, filename)
                caption_file = sidecar(path)
                if prompt and prompt_of_caption_file.setdefault(caption_file, prompt) != prompt:
                    raise Refused(
                        f"{filename} shares its caption file {caption_file.name} with another"
                        " picture, whose prompt was taken.",
                        code=ErrorCode.SHARED,
                    )
            except Refused as error:
                refused.append({"filename": filename, "reason": error.message})
            except OSError as error:
                reason = f"Its caption file cannot be read: {error.strerror or error}."
                refused.append({"filename": filename, "reason": reason})
            else:
                if prompt:
                    prompts[filename] = prompt
        if prompts:
            label = "Prompt as caption" if len(prompts) == 1 else "Prompts as captions"
            editor.set_captions(prompts, label=label)
        return refused


def _prompt_for(path: Path, filename: str) -> str:
    """Return the prompt that becomes a picture's caption; "" if it has a caption or no prompt."""
    if read_caption(path):
        return ""
    prompt = prompt_of(path)
    if prompt:
        check_caption(filename, prompt)
    return prompt


def _folder_in(pointer: Path, name: str) -> Path:
    """Read which folder a data set is."""
    try:
        return Path(json.loads(pointer.read_text(encoding="utf-8"))["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"The data set {name} points to a folder, but {pointer} cannot be read. Add the"
            " folder again.",
            code=ErrorCode.NOT_FOUND,
        ) from error


def _why_unreadable(folder: Path) -> str:
    name = str(folder)[:200]
    try:
        if not folder.exists():
            return f"The folder {name} does not exist."
        if not folder.is_dir():
            return f"{folder} is a file, not a folder."
        next(folder.iterdir(), None)
    except OSError as error:
        return f"The folder {name} cannot be read: {error.strerror or error}."
    return ""


def _can_be_name(name: str) -> bool:
    if not name or not is_plain_text(name) or name.startswith("."):
        return False
    has_separator = re.search(r"[\\/:\x00]", name) is not None
    return not has_separator and len(name.encode()) < LONGEST_NAME_BYTES


def _checked_name(name: str) -> str:
    if problem := why_not_a_name(name):
        raise Refused(
            f"{problem} Choose another name for the data set.",
            field="name",
            code=ErrorCode.BAD_NAME,
        )
    return name
