"""Data sets by name: folders under the data folder, or any folder the user names; what is uploaded
into them. Editing is in editor.py.

datasets/<name>/                pictures and captions
datasets/<name>/.train_lora/    history, trash and thumbnails, and folder.json when the data set is
a folder elsewhere
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..base.errors import Refused
from ..base.files import write_atomically
from ..base.paths import expanded
from ..base.text import decode
from ..dataset.caption_tables import LARGEST_TABLE_BYTES, TABLE_NAMES
from ..dataset.captions import CAPTION_ENDINGS, LARGEST_CAPTION_BYTES, read_caption, sidecar
from ..dataset.scan import PICTURE_ENDINGS, Problem, examine, is_picture_file, picture_folders
from ..settings.config import check_name, is_plain_text
from . import uploads
from .editor import CountTokens, DataSetEditor, check_caption, safe_filename
from .picture_files import holds_parameters, prompt_of
from .zip_archive import ZipArchive

LARGEST_UPLOAD_BYTES = 64_000_000


class Library:
    """The data sets of one data folder. `check_path` raises `Refused` for a folder that may not be
    read from here.
    """

    def __init__(
        self,
        folder: Path,
        check_path: Callable[[Path], None] = lambda path: None,
        *,
        count_tokens: CountTokens | None = None,
    ) -> None:
        self._folder, self._check_path, self._count_tokens = folder, check_path, count_tokens
        self._editors: dict[str, DataSetEditor] = {}
        self._lock = threading.Lock()

    def all(self) -> list[dict]:
        """Every data set, by name: `{name, path, pictures}`."""
        homes = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return [
            self._summary(home.name)
            for home in homes
            if home.is_dir() and not home.name.startswith(".")
        ]

    def create(self, name: str | None, path: str | None = None) -> dict:
        """Make an empty data set, or adopt a folder; an existing one of that name is returned as it
        is. Raises `Refused`.
        """
        folder = self._adoptable(path) if path else None
        name = _checked_name(name or (folder.name if folder else self._free("pictures")))
        home = self._folder / name
        if folder and home.is_dir() and self.path(name) != folder:
            name = self._free(name)
            home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        if folder:
            self._own(name).mkdir(exist_ok=True)
            write_atomically(
                self._own(name) / "folder.json",
                json.dumps({"path": str(folder)}, ensure_ascii=False).encode("utf-8"),
            )
        return self._summary(name)

    def path(self, name: str) -> Path:
        """Return the folder of a data set; raises `Refused` (code "not_found")."""
        home = self._folder / name if _is_plain(name) else None
        if home is None or not home.is_dir():
            raise Refused(
                f"There is no data set called {name!r}.", field="train_data_dir", code="not_found"
            )
        pointer = home / ".train_lora" / "folder.json"
        if not pointer.is_file():
            if home.is_symlink():
                self._check_path(home)
            return home
        try:
            folder = Path(json.loads(pointer.read_text(encoding="utf-8"))["path"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(
                f"The data set {name} points to a folder, but {pointer} cannot be read. Add the"
                " folder again.",
                code="not_found",
            ) from error
        self._check_path(folder)  # it may have been added when only this machine could ask
        return folder

    def resolve(self, name_or_folder: str) -> Path:
        """Return the folder that a user means: a data set's name first, else a path."""
        if _is_plain(name_or_folder) and (self._folder / name_or_folder).is_dir():
            return self.path(name_or_folder)
        folder = expanded(name_or_folder)
        self._check_path(folder)
        return folder

    def open(self, name: str) -> DataSetEditor:
        """Return the editor of a data set; raises `Refused` (code "not_found")."""
        folder = self.path(name)
        with self._lock:
            editor = self._editors.get(name)
            if editor is None or editor.folder != folder or not editor.alive():
                if editor is not None:
                    editor.close()
                try:
                    editor = self._editors[name] = DataSetEditor(
                        name, folder, self._own(name), count_tokens=self._count_tokens
                    )
                except (OSError, sqlite3.Error) as error:
                    raise Refused(
                        f"The history of {name} cannot be written in {self._own(name)}:"
                        f" {getattr(error, 'strerror', None) or error}.",
                        code="cannot_save",
                    ) from error
            return editor

    def describe(self, name: str) -> dict:
        """Say what is in a data set; as `DataSetEditor.describe`."""
        return self.open(name).describe()

    def add(self, name: str, filename: str, data: bytes) -> str:
        """Save an uploaded picture or caption under its own name and return that; raises `Refused`
        with the reason.
        """
        return self._store(self.path(name), PurePosixPath(_uploadable_name(filename)), data)

    def add_archive(self, name: str, filename: str, file: BinaryIO) -> uploads.UploadResult:
        """Add the pictures and captions of a ZIP, each by the rules of `add`.

        Raises `Refused` for one that cannot be read at all.
        """
        archive = ZipArchive(file, re.split(r"[\\/]", filename)[-1][:80])
        return self._take_in(name, uploads.files_of_zip(archive), within=archive.name)

    def add_folder(
        self, name: str, path: str, *, with_prompts: bool = False, create: bool = False
    ) -> uploads.UploadResult:
        """Add copies of the pictures and captions in a folder and those below it, such as the
        WebUI's output folder; as `add_archive`.

        `with_prompts`: captions come from what the pictures hold, so .txt files that hold the same
        are not taken for captions.
        `create`: the data set is made where there is none, once the folder was found.
        """
        folder = self._adoptable(path)
        home = self._home(name, create=create)
        if home.is_relative_to(folder) or folder.is_relative_to(home):
            raise Refused(
                f"{folder} and the data set {name} are one within the other. Choose another"
                " folder.",
                field="folder",
                code="twice",
            )
        sources = uploads.files_of_folder(folder)
        if create:
            self.create(name)
        return self._take_in(
            name, [source for source in sources if not (with_prompts and _is_note(source))]
        )

    def _take_in(
        self, name: str, sources: list[uploads.SourceFile], *, within: str = ""
    ) -> uploads.UploadResult:
        folder = self.path(name)
        return uploads.store_files(
            sources,
            lambda path, data: self._store(folder, path, data),
            lambda filename: _limit_of(_uploadable_name(filename)),
            within=within,
        )

    def _store(self, folder: Path, path: PurePosixPath, data: bytes) -> str:
        """Save a file at a path in a data set and return that; raises `Refused` with the reason."""
        filename = _uploadable_name(path.name)
        path = PurePosixPath(*map(safe_filename, path.parts[:-1]), filename)
        if len(data) > _limit_of(filename):
            raise Refused(
                f"{filename} is too large: at most {_limit_of(filename) / 1e6:g} MB.",
                code="too_large",
            )
        if path.suffix.lower() in PICTURE_ENDINGS:
            _check_picture(folder, filename, data)
        with self._lock:  # of two that come at once under one name, one is refused
            target = _place_for(folder, path)
            if target.exists() and not _holds(target, data):
                raise Refused(
                    f"{filename} is there already, with other content. Rename one of them.",
                    code="exists",
                )
            if not target.exists():
                _save(target, data)
        return path.as_posix()

    def add_captions_from_prompts(
        self, name: str, filenames: Sequence[str]
    ) -> list[dict[str, str]]:
        """Give pictures without a caption the prompt that the WebUI wrote into them, as one step.

        Returns `{filename, reason}` for each whose prompt cannot be its caption; no other is held
        up by it.
        """
        editor, prompts, taken, refused = self.open(name), {}, {}, []
        for filename in filter(is_picture_file, map(Path, filenames)):
            try:
                path = editor.picture_path(filename.as_posix())
                prompt = "" if read_caption(path) else prompt_of(path)
                if prompt:
                    check_caption(filename.as_posix(), prompt)
                if prompt and taken.setdefault(sidecar(path), prompt) != prompt:
                    raise Refused(
                        f"{filename} shares its caption file {sidecar(path).name} with another"
                        " picture, whose prompt was taken.",
                        code="shared",
                    )
            except Refused as error:
                refused.append({"filename": filename.as_posix(), "reason": error.message})
            except OSError as error:
                refused.append(
                    {
                        "filename": filename.as_posix(),
                        "reason": f"Its caption file cannot be read: {error.strerror or error}.",
                    }
                )
            else:
                prompts.update({filename.as_posix(): prompt} if prompt else {})
        if prompts:
            editor.set_captions(
                prompts,
                label=f"Prompt{'s' * (len(prompts) > 1)} as caption{'s' * (len(prompts) > 1)}",
            )
        return refused

    def picture_path(self, name: str, filename: str) -> Path:
        return self.open(name).picture_path(filename)

    def captioning(self, name: str, label: str) -> AbstractContextManager[Callable[..., list[str]]]:
        """Write a captioner's captions; as `DataSetEditor.captioning`."""
        return self.open(name).captioning(label)

    def close(self) -> None:
        with self._lock:
            for editor in self._editors.values():
                editor.close()
            self._editors.clear()

    # --- Inside -----------------------------------------------------------------------------------

    def _home(self, name: str, *, create: bool) -> Path:
        """Return the folder of a data set, links followed, or where it will be made."""
        new = create and not (self._folder / _checked_name(name)).exists()
        return (self._folder / name if new else self.path(name)).resolve()

    def _own(self, name: str) -> Path:
        return self._folder / name / ".train_lora"

    def _summary(self, name: str) -> dict:
        try:
            folder = self.path(name)
            files = (path for place in picture_folders(folder) for path in place.iterdir())
            count = sum(map(is_picture_file, files))
        except (OSError, Refused):
            return {"name": name, "path": "", "pictures": 0}
        return {"name": name, "path": str(folder), "pictures": count}

    def _adoptable(self, path: str) -> Path:
        folder = expanded(path.strip().strip('"'))
        self._check_path(folder)
        scan_error = None
        try:
            if not folder.is_dir():
                scan_error = (
                    f"The folder {str(folder)[:200]} does not exist."
                    if not folder.exists()
                    else f"{folder} is a file, not a folder."
                )
            else:
                next(folder.iterdir(), None)
        except OSError as error:
            scan_error = (
                f"The folder {str(folder)[:200]} cannot be read: {error.strerror or error}."
            )
        if scan_error:
            raise Refused(scan_error, field="path", code="no_folder")
        return folder.resolve()

    def _free(self, name: str) -> str:
        if not (self._folder / name).exists():
            return name
        number = 2
        while (self._folder / f"{name}-{number}").exists():
            number += 1
        return f"{name}-{number}"


def _is_plain(name: str) -> bool:
    return (
        bool(name)
        and is_plain_text(name)
        and name not in (".", "..")
        and not name.startswith(".")
        and not re.search(r"[\\/:\x00]", name)
        and len(name.encode()) < 240
    )


def _checked_name(name: str) -> str:
    try:
        return check_name(name)
    except Refused as error:
        raise Refused(
            error.message.split(". Use ")[0] + ". Choose another name for the data set.",
            field="name",
            code="bad_name",
        ) from error


def _uploadable_name(filename: str) -> str:
    name = safe_filename(filename)
    if (
        Path(name).suffix.lower() not in (*PICTURE_ENDINGS, *CAPTION_ENDINGS)
        and name.lower() not in TABLE_NAMES
    ):
        raise Refused(
            f"{name} is neither a picture ({', '.join(PICTURE_ENDINGS[:5])}, …) nor a caption"
            " (.txt, .caption, metadata.csv).",
            code="not_a_picture",
        )
    stem, ending = os.path.splitext(name)
    return (
        stem + ending.lower() if ending.lower() in CAPTION_ENDINGS else name
    )  # cat.TXT would never be found beside cat.png


def _is_note(source: uploads.SourceFile) -> bool:
    """Tell whether a file is the WebUI's note on how a picture was made."""
    if not source.path.lower().endswith(".txt"):
        return False
    try:
        return holds_parameters(decode(source.read(LARGEST_CAPTION_BYTES)))
    except Refused:  # said once it is to be taken
        return False


def _limit_of(filename: str) -> int:
    """Return how many bytes a file of this name may have."""
    ending = Path(filename).suffix.lower()
    if ending in PICTURE_ENDINGS:
        return LARGEST_UPLOAD_BYTES
    return LARGEST_CAPTION_BYTES if ending in CAPTION_ENDINGS else LARGEST_TABLE_BYTES


def _place_for(folder: Path, path: PurePosixPath) -> Path:
    """Return a file's path in a data set, its folder made; raises `Refused` where a link leads out
    of it.
    """
    target = folder / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        inside = target.parent.resolve().is_relative_to(folder.resolve())
    except OSError as error:
        raise Refused(
            f"{path.parent} cannot be made: {error.strerror or error}.", code="bad_name"
        ) from error
    if not inside:
        raise Refused(f"{path.parent} is a link that leads out of the data set.", code="bad_name")
    return target


def _holds(path: Path, data: bytes) -> bool:
    """Tell whether a file has exactly this content; a folder or a pipe has none."""
    try:
        return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError as error:
        raise Refused(
            f"{path.name} is there already and cannot be read: {error.strerror or error}.",
            code="exists",
        ) from error


def _save(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise Refused(
            f"{path.name} cannot be saved: {error.strerror or error}.", code="cannot_save"
        ) from error


def _check_picture(folder: Path, filename: str, data: bytes) -> None:
    """Refuse what is not a usable picture by its content, before it gets its name."""
    trial = (
        folder / f".upload-{hashlib.sha256(data).hexdigest()[:16]}-{threading.get_ident()}"
        f"{Path(filename).suffix.lower()}"
    )
    try:
        trial.write_bytes(data)
        found = examine(trial)
    except OSError as error:
        raise Refused(
            f"{filename} cannot be saved: {error.strerror or error}.", code="cannot_save"
        ) from error
    finally:
        trial.unlink(missing_ok=True)
    if isinstance(found, Problem):
        raise Refused(found.reason.replace(trial.name, filename), code="not_a_picture")
