"""The pictures of a folder: which files there are, which of them can be used, and why the rest
cannot.

folder -> scan -> Picture -> selection (roles) -> runs.plan (samples).
"""

import dataclasses
import os
import re
from pathlib import Path, PurePath
from typing import NamedTuple

from ..base.errors import ErrorCode, Refused
from ..base.paths import is_inside
from .caption_tables import find_table
from .captions import CAPTION_ENDINGS, find_caption
from .images import PICTURE_ENDINGS, read_facts, unreadable
from .sample import Picture

# How the stem of a mask ends, as OneTrainer names them: cat-masklabel.png beside cat.png
MASK_ENDING = "-masklabel"
MOST_FOLDERS = 5000


@dataclasses.dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


class _Place(NamedTuple):
    """A folder with pictures, how often each counts, and their caption where they have none."""

    folder: Path
    repeats: int
    class_words: str = ""


def scan(
    folder: Path,
    *,
    metadata_path: str = "",
    repeats: int = 1,
    thorough: bool = True,
    caption_ending: str = CAPTION_ENDINGS[0],
    subfolders: str = "kohya",
) -> tuple[list[Picture], list[Problem]]:
    """Examine every picture of a folder and its subfolders, sorted by name.

    Returns those that can be used and those that cannot. `subfolders`: "kohya" (`10_name`), "none",
    or "all" that are not hidden, at any depth. Without `thorough` only headers are read of pictures
    that were never decoded, which is a hundred times as fast and does not find damage. Raises
    `Refused` when the folder is not there or cannot be read.
    """
    pictures: list[Picture] = []
    problems: list[Problem] = []
    places = _places(folder, repeats, subfolders)
    named_table = find_table(folder, metadata_path) if metadata_path else None
    for place in places:
        table = find_table(place.folder) if named_table is None else named_table
        for path in sorted(_listed(place.folder), key=lambda path: path.name):
            if not is_picture_name(path.name):
                continue
            found = examine(
                path,
                table,
                repeats=place.repeats,
                class_words=place.class_words,
                thorough=thorough,
                caption_ending=caption_ending,
            )
            if isinstance(found, Picture):
                pictures.append(found)
            else:
                problems.append(found)
    return pictures, problems


def is_picture_name(name: str) -> bool:
    """Tell by its name, or its path with slashes, whether a file is a picture to learn from.

    Hidden files and masks are none.
    """
    stem, ending = os.path.splitext(name)
    return (
        ending.lower() in PICTURE_ENDINGS
        and not os.path.basename(stem).startswith(".")
        and not stem.endswith(MASK_ENDING)
    )


def examine(
    path: Path,
    table: dict[str, str] | None = None,
    *,
    repeats: int = 1,
    class_words: str = "",
    thorough: bool = True,
    caption_ending: str = CAPTION_ENDINGS[0],
) -> Picture | Problem:
    """Examine one picture and read its caption; not `thorough`: by its header alone."""
    try:
        facts = read_facts(path, thorough=thorough)
    except Refused as error:
        return Problem(path, error.message)
    except OSError as error:
        return Problem(path, f"{path.name} cannot be read: {error.strerror or error}.")
    except MemoryError as error:
        return Problem(path, unreadable(path, error).message)
    try:
        found = find_caption(path, table, preferred=caption_ending)
    except OSError as error:
        reason = f"The caption file of {path.name} cannot be read: {error.strerror or error}."
        return Problem(path, reason)
    caption = found.text or class_words
    return Picture(
        path,
        facts.width,
        facts.height,
        caption,
        repeats,
        has_alpha=facts.has_alpha,
        file_warnings=facts.file_warnings,
        other_caption=found.other,
    )


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder; raises `Refused` when it cannot be read."""
    try:
        if folder.is_dir():
            return list(folder.iterdir())
        exists = folder.exists()
    except PermissionError as error:
        raise Refused(
            f"The folder {folder} may not be read: permission denied.",
            field="train_data_dir",
            code=ErrorCode.NO_PERMISSION,
        ) from error
    except OSError as error:
        reason = f"The folder {str(folder)[:120]} cannot be read: {error.strerror or error}."
        raise _no_folder(reason) from error
    if exists:
        raise _no_folder(f"{folder} is a file, not a folder.")
    raise _no_folder(f"The folder {folder} does not exist.")


def _no_folder(message: str) -> Refused:
    return Refused(message, field="train_data_dir", code=ErrorCode.NO_FOLDER)


def read_kohya_name(folder: PurePath) -> tuple[int, str] | None:
    """Read a folder name such as kohya's `10_red_cat` as (10, "red cat"); None for other names."""
    match = re.fullmatch(r"(\d+)_(.+)", folder.name)
    return (int(match[1]), match[2].replace("_", " ")) if match else None


def picture_folders(folder: Path) -> list[Path]:
    """Return the folders that hold a data set's pictures: itself and kohya's subfolders.

    Raises OSError.
    """
    return [folder, *(place.folder for place in _kohya_subfolders(folder))]


def _kohya_subfolders(folder: Path) -> list[_Place]:
    found = []
    for path in sorted(folder.iterdir()):
        name = read_kohya_name(path)
        if name and is_other_folder(path, folder):
            found.append(_Place(path, *name))
    return found


def is_other_folder(path: Path, folder: Path) -> bool:
    """Tell whether a path is a folder, and no link back to `folder` or above it.

    Such a link would show the same pictures twice.
    """
    return path.is_dir() and not (path.is_symlink() and is_inside(folder, path))


def _places(folder: Path, repeats: int, subfolders: str) -> list[_Place]:
    """Return the folder itself and the subfolders that are asked for."""
    _listed(folder)  # raises `Refused`, where what follows would raise OSError
    if subfolders == "none":
        return [_Place(folder, repeats)]
    if subfolders == "all":
        return [_Place(path, repeats) for path in _tree(folder)]
    own_repeats, own_words = read_kohya_name(folder) or (repeats, "")
    if repeats != 1:  # the setting was changed, and counts more than the folder's name
        own_repeats = repeats
    return [_Place(folder, own_repeats, own_words), *_kohya_subfolders(folder)]


def _tree(folder: Path) -> list[Path]:
    found = []
    for place, names, _ in os.walk(folder):  # which follows no link
        names[:] = sorted(name for name in names if not name.startswith("."))
        found.append(Path(place))
        if len(found) > MOST_FOLDERS:
            raise _no_folder(
                f"There are more than {MOST_FOLDERS:,} folders in {folder}. Choose one of them."
            )
    return found
