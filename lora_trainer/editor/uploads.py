"""Many files at once into a data set, from a ZIP or a folder: which are taken, and where each goes.

`files_of_zip` or `files_of_folder` → SourceFile … → `store_files` → the rules of a single upload
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..base.errors import ErrorCode, Refused
from ..dataset.captions import CAPTION_ENDINGS
from ..dataset.scan import MASK_ENDING, is_picture_name, read_kohya_name
from .dataset_reader import UnusableFile
from .zip_archive import ZipArchive, ZipEntry

MOST_FILES = 20_000
MOST_LEVELS = 4  # of folders in folders
LONGEST_NAME = 200
ARCHIVE_ENDINGS = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".xz", ".bz2")
SYSTEM_FILES = re.compile(r"(?i)__macosx|thumbs\.db|desktop\.ini|\..*")
REGULARISATION_FOLDERS = re.compile(r"(?i)reg|regs|regulari[sz]ation|reg_data")
MASK_FOLDER = "mask"  # of masks beside pictures, as kohya has it for conditioning images
FINAL_CODES = ("archive_limit", "cannot_save")  # refusals after which no other file is tried
Stem = tuple[PurePosixPath, str]  # a picture's folder in the data set, and its name without ending
Store = Callable[[PurePosixPath, bytes], str]
"""Saves a file at a path in the data set by the rules of uploads; returns its name there."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file that may come into a data set: its path in the ZIP or folder, and `read(most_bytes)`,
    which raises `Refused`.
    """

    path: str
    read: Callable[[int], bytes]


@dataclasses.dataclass
class UploadResult:
    """What became of the files: names in the data set, and why others were refused."""

    added: list[str] = dataclasses.field(default_factory=list)
    refused: list[UnusableFile] = dataclasses.field(default_factory=list)

    def refuse(self, filename: str, reason: str) -> None:
        self.refused.append({"filename": filename, "reason": reason})


def files_of_zip(archive: ZipArchive) -> list[SourceFile]:
    """Return a ZIP's files, without those that operating systems put there."""

    def source_file(entry: ZipEntry) -> SourceFile:
        return SourceFile(entry.path, lambda most_bytes: archive.read(entry, most_bytes))

    return [source_file(entry) for entry in archive.entries if not _is_system_file(entry.path)]


def files_of_folder(folder: Path) -> list[SourceFile]:
    """Return the files of a folder and of those in it; links are not followed.

    A text file is taken where a picture of its name lies beside it. Raises `Refused` when there are
    too many files.
    """

    def source_file(path: Path) -> SourceFile:
        relative = path.relative_to(folder).as_posix()
        return SourceFile(relative, lambda most_bytes: _content(path, most_bytes))

    found: list[SourceFile] = []
    for path in _walk(folder, MOST_LEVELS):
        if len(found) >= MOST_FILES:
            raise Refused(
                f"There are more than {MOST_FILES:,} files in {folder}. Choose a folder in it.",
                field="folder",
                code=ErrorCode.TOO_LARGE,
            )
        found.append(source_file(path))
    return _without_notes(found)


def _without_notes(sources: Sequence[SourceFile]) -> list[SourceFile]:
    """Leave out texts without a picture of their name."""
    paths = [PurePosixPath(source.path) for source in sources]
    of_pictures = {path.with_suffix("") for path in paths if is_picture_name(path.name)}
    return [
        source
        for source, path in zip(sources, paths, strict=True)
        if path.suffix.lower() not in CAPTION_ENDINGS or path.with_suffix("") in of_pictures
    ]


def store_files(
    sources: Sequence[SourceFile],
    store: Store,
    most_bytes_of: Callable[[str], int],
    *,
    archive_name: str = "",
) -> UploadResult:
    """Put files into a data set; a caption comes with its picture or not at all.

    `most_bytes_of(name)` is how large a file may be, and raises `Refused` for a name that is not
    taken. Refused files are named with `archive_name` in front.
    """
    result = UploadResult()
    folder_of_target: dict[Stem, str] = {}
    tried_pictures: set[tuple[Stem, str]] = set()
    stored: set[tuple[Stem, str]] = set()
    for source in _pictures_first(sources):
        filename = f"{archive_name}/{source.path}" if archive_name else source.path
        try:
            target = target_path(source.path)
            folder = _folder_of(source.path)
            stem = (target.parent, target.stem.removesuffix(MASK_ENDING).lower())
            _check_same_folder(folder_of_target.setdefault(stem, folder), folder, target.stem)
            key = (stem, folder)
            if is_picture_name(target.name):
                tried_pictures.add(key)
            elif key in tried_pictures and key not in stored:
                raise Refused("Its picture was not taken.", code=ErrorCode.EXISTS)
            result.added.append(store(target, source.read(most_bytes_of(target.name))))
            stored.add(key)
        except Refused as error:
            if error.code in FINAL_CODES:
                result.refuse(archive_name or filename, f"{error.message} Nothing more was taken.")
                break
            result.refuse(filename, error.message)
    return result


def _pictures_first(sources: Sequence[SourceFile]) -> list[SourceFile]:
    def order(source: SourceFile) -> tuple[bool, str]:
        return not is_picture_name(PurePosixPath(*_parts(source.path)).name), source.path

    return sorted(sources, key=order)


def _check_same_folder(first: str, folder: str, stem: str) -> None:
    """Raise `Refused` for files of one name in two folders, which are put together."""
    if first != folder:
        raise Refused(
            f"{first or 'The top folder'} has files called {stem}, too. Folders are put together, "
            "but for those named as 10_cat. "
            "Rename one of the files.",
            code=ErrorCode.EXISTS,
        )


def target_path(path: str) -> PurePosixPath:
    """Return where in a data set a file belongs: in its folder, or in a kohya subfolder such as
    10_cat; masks in `mask` beside their pictures.

    Raises `Refused` for a path that leads out, regularisation pictures, archives in archives.
    """
    parts = _parts(path)
    if path.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", path):
        raise Refused("Its path leads out of the data set.", code=ErrorCode.BAD_NAME)
    if any(len(part) > LONGEST_NAME for part in parts):
        raise Refused("Its name, or a folder's, is too long.", code=ErrorCode.BAD_NAME)
    if any(REGULARISATION_FOLDERS.fullmatch(part) for part in parts[:-1]):
        raise Refused(
            "Regularisation pictures need a data set of their own.", code=ErrorCode.REGULARISATION
        )
    if parts[-1].lower().endswith(ARCHIVE_ENDINGS):
        raise Refused(
            "It is an archive in an archive. Unpack it first.", code=ErrorCode.NOT_A_PICTURE
        )
    *folders, name = parts
    is_mask = bool(folders) and folders[-1].lower() == MASK_FOLDER
    if is_mask:
        folders.pop()
    target = PurePosixPath()
    if folders and read_kohya_name(PurePosixPath(folders[-1])):
        target /= folders[-1]
    if is_mask:
        target /= MASK_FOLDER
    return target / name


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[\\/]", path) if part not in ("", ".")] or ["?"]


def _folder_of(path: str) -> str:
    return "/".join(_parts(path)[:-1])


def _is_system_file(path: str) -> bool:
    return any(SYSTEM_FILES.fullmatch(part) for part in _parts(path) if part != "..")


def _walk(folder: Path, levels: int) -> Iterator[Path]:
    """Yield files below a folder, by name; hidden ones and links are left out. Raises `Refused`."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry for entry in entries if not SYSTEM_FILES.fullmatch(entry.name)),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise Refused(
            f"The folder {str(folder)[:200]} cannot be read: {error.strerror or error}.",
            field="folder",
            code=ErrorCode.NO_FOLDER,
        ) from error
    for entry in found:
        if entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        elif levels and entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), levels - 1)


def _content(path: Path, most_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise Refused(
            f"It cannot be read: {error.strerror or error}.", code=ErrorCode.NO_FILE
        ) from error
    if len(data) > most_bytes:
        raise Refused(f"It is larger than {most_bytes / 1e6:g} MB.", code=ErrorCode.TOO_LARGE)
    return data
