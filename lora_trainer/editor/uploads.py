"""Many files at once into a data set, from an archive or a folder: where each goes.

ZipArchive or a folder → SourceFile … → store_files → the library's rules for a single upload
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..base.errors import Refused
from ..dataset.captions import CAPTION_ENDINGS
from ..dataset.scan import MASK_ENDING, is_picture_file, read_kohya_name
from .zip_archive import ZipArchive

ARCHIVE_ENDINGS = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".xz", ".bz2")
NOT_MEANT = re.compile(r"(?i)__macosx|thumbs\.db|desktop\.ini|\..*")
REGULARISATION = re.compile(r"(?i)reg|regs|regulari[sz]ation|reg_data")
MASKS = "mask"  # the folder of masks beside pictures, as for kohya's conditioning images
MOST_FILES, MOST_LEVELS, LONGEST_NAME = 20_000, 4, 200
LAST = ("archive_limit", "cannot_save")  # refusals after which nothing more is tried
Store = Callable[[PurePosixPath, bytes], str]
"""Puts a file at a path in the data set by the rules of uploads; returns its name there."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file that is to come into the data set: its path where it comes from, and
    `read(most_bytes)`, which raises `Refused`."""

    path: str
    read: Callable[[int], bytes]


@dataclasses.dataclass
class UploadResult:
    """What became of the files: names in the data set, and `{filename, reason}` of the others."""

    added: list[str] = dataclasses.field(default_factory=list)
    refused: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def refuse(self, filename: str, reason: str) -> None:
        self.refused.append({"filename": filename, "reason": reason})


def files_of_zip(archive: ZipArchive) -> list[SourceFile]:
    """Return an archive's files, but for what systems put there by themselves."""

    def read(entry):
        return lambda most_bytes: archive.read(entry, most_bytes)

    return [
        SourceFile(entry.path, read(entry))
        for entry in archive.entries
        if not _not_meant(entry.path)
    ]


def files_of_folder(folder: Path) -> list[SourceFile]:
    """Return the files of a folder and of those in it, no links followed. A text file counts as a
    caption where a picture of its name lies beside it; others are somebody's notes.

    Raises `Refused` when there are too many.
    """
    found = []
    for path in _walk(folder, MOST_LEVELS):
        if len(found) >= MOST_FILES:
            raise Refused(
                f"There are more than {MOST_FILES:,} files in {folder}. Choose a folder in it.",
                field="folder",
                code="too_large",
            )
        found.append(
            SourceFile(
                path.relative_to(folder).as_posix(),
                lambda most_bytes, path=path: _content(path, most_bytes),
            )
        )
    return _without_notes(found)


def _without_notes(sources: Sequence[SourceFile]) -> list[SourceFile]:
    paths = [PurePosixPath(source.path) for source in sources]
    pictured = {path.with_suffix("") for path in paths if is_picture_file(path)}
    return [
        source
        for source, path in zip(sources, paths, strict=True)
        if path.suffix.lower() not in CAPTION_ENDINGS or path.with_suffix("") in pictured
    ]


def store_files(
    sources: Sequence[SourceFile], store: Store, limit_of: Callable[[str], int], *, within: str = ""
) -> UploadResult:
    """Put files into a data set; a caption goes with its picture or not at all.

    `limit_of(name)` is how many bytes a file may have, and raises `Refused` for a name that is not
    taken. `within` is what the refused are named after.
    """
    taken, owners = UploadResult(), {}
    tried, there = set(), set()  # (place, name, folder) of pictures
    for source in _pictures_first(sources):
        shown = f"{within}/{source.path}" if within else source.path
        try:
            target, home = place(source.path), _folder_of(source.path)
            key = (target.parent, target.stem.removesuffix(MASK_ENDING).lower())
            _check_owner(owners.setdefault(key, home), home, target.stem)
            if is_picture_file(target):
                tried.add((key, home))
            elif (key, home) in tried - there:
                raise Refused("Its picture was not taken.", code="exists")
            taken.added.append(store(target, source.read(limit_of(target.name))))
            there.add((key, home))
        except Refused as error:
            if error.code in LAST:
                taken.refuse(within or shown, f"{error.message} Nothing more was taken.")
                break
            taken.refuse(shown, error.message)
    return taken


def _pictures_first(sources: Sequence[SourceFile]) -> list[SourceFile]:
    def order(source: SourceFile) -> tuple[bool, str]:
        return not is_picture_file(PurePosixPath(*_parts(source.path))), source.path

    return sorted(sources, key=order)


def _check_owner(owner: str, home: str, stem: str) -> None:
    """Folders are put together, so two of them may not have pictures, or captions, of one name."""
    if owner != home:
        raise Refused(
            f"{owner or 'The top folder'} has files called {stem}, too. Folders are put together, "
            "but for those named as 10_cat. "
            "Rename one of the files.",
            code="exists",
        )


def place(path: str) -> PurePosixPath:
    """Return where in a data set a file belongs: in it, or in a folder such as kohya's 10_cat, and
    masks in `mask` beside their pictures.

    Raises `Refused` for a path that leads out, regularisation pictures, archives in archives.
    """
    parts = _parts(path)
    if path.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", path):
        raise Refused("Its path leads out of the data set.", code="bad_name")
    if any(len(part) > LONGEST_NAME for part in parts):
        raise Refused("Its name, or a folder's, is too long.", code="bad_name")
    if any(REGULARISATION.fullmatch(part) for part in parts[:-1]):
        raise Refused(
            "Regularisation pictures need a data set of their own.", code="regularisation"
        )
    if parts[-1].lower().endswith(ARCHIVE_ENDINGS):
        raise Refused("It is an archive in an archive. Unpack it first.", code="not_a_picture")
    masks = [MASKS] if len(parts) > 1 and parts[-2].lower() == MASKS else []
    above = parts[:-2] if masks else parts[:-1]
    kohyas = [above[-1]] if above and read_kohya_name(PurePosixPath(above[-1])) else []
    return PurePosixPath(*kohyas, *masks, parts[-1])


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[\\/]", path) if part not in ("", ".")] or ["?"]


def _folder_of(path: str) -> str:
    return "/".join(_parts(path)[:-1])


def _not_meant(path: str) -> bool:
    return any(NOT_MEANT.fullmatch(part) for part in _parts(path) if part != "..")


def _walk(folder: Path, levels: int) -> Iterator[Path]:
    """Yield files below a folder, by name; hidden ones and links are left out. Raises `Refused`."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry for entry in entries if not NOT_MEANT.fullmatch(entry.name)),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise Refused(
            f"The folder {str(folder)[:200]} cannot be read: {error.strerror or error}.",
            field="folder",
            code="no_folder",
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
        raise Refused(f"It cannot be read: {error.strerror or error}.", code="no_file") from error
    if len(data) > most_bytes:
        raise Refused(f"It is larger than {most_bytes / 1e6:g} MB.", code="too_large")
    return data
