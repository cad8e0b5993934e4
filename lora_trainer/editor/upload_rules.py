"""Which uploaded files are saved in a data set, under which names, and how large they may be."""

import hashlib
import os
import threading
from pathlib import Path, PurePosixPath

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..base.paths import is_inside
from ..base.text import decode
from ..dataset.caption_tables import LARGEST_TABLE_BYTES, TABLE_NAMES
from ..dataset.captions import CAPTION_ENDINGS, LARGEST_CAPTION_BYTES
from ..dataset.images import PICTURE_ENDINGS
from ..dataset.scan import Problem, examine
from .file_names import safe_filename
from .picture_files import holds_parameters
from .uploads import SourceFile

LARGEST_UPLOAD_BYTES = 64_000_000


def save_upload(folder: Path, path: PurePosixPath, data: bytes, *, lock: threading.Lock) -> str:
    """Save a file at a path in a data set's folder, and return that path.

    Raises `Refused` for a file that is no usable picture, caption or table, is too large, or has
    the name of another. Of two files that are saved at once under one name, `lock` refuses one.
    """
    filename = uploadable_name(path.name)
    path = PurePosixPath(*map(safe_filename, path.parts[:-1]), filename)
    most_bytes = largest_upload_bytes(filename)
    if len(data) > most_bytes:
        raise Refused(
            f"{filename} is too large: at most {most_bytes / 1e6:g} MB.", code=ErrorCode.TOO_LARGE
        )
    if path.suffix.lower() in PICTURE_ENDINGS:
        _check_picture(folder, filename, data)
    with lock:
        target = _target_of(folder, path)
        if not target.exists():
            _save(target, data)
        elif not _has_content(target, data):
            raise Refused(
                f"{filename} is there already, with other content. Rename one of them.",
                code=ErrorCode.EXISTS,
            )
    return path.as_posix()


def uploadable_name(filename: str) -> str:
    """Return the name under which a file is saved; raises `Refused` for one that is neither a
    picture nor a caption nor a table.
    """
    name = safe_filename(filename)
    stem, ending = os.path.splitext(name)
    is_known_ending = ending.lower() in (*PICTURE_ENDINGS, *CAPTION_ENDINGS)
    if not is_known_ending and name.lower() not in TABLE_NAMES:
        raise Refused(
            f"{name} is neither a picture ({', '.join(PICTURE_ENDINGS[:5])}, …) nor a caption"
            " (.txt, .caption, metadata.csv).",
            code=ErrorCode.NOT_A_PICTURE,
        )
    if ending.lower() in CAPTION_ENDINGS:
        return stem + ending.lower()  # cat.TXT would never be found beside cat.png
    return name


def largest_upload_bytes(filename: str) -> int:
    """Return how many bytes a file of this name may have."""
    ending = Path(filename).suffix.lower()
    if ending in PICTURE_ENDINGS:
        return LARGEST_UPLOAD_BYTES
    if ending in CAPTION_ENDINGS:
        return LARGEST_CAPTION_BYTES
    return LARGEST_TABLE_BYTES


def is_prompt_note(file: SourceFile) -> bool:
    """Tell whether a file is the WebUI's .txt of how a picture was generated."""
    if not file.path.lower().endswith(".txt"):
        return False
    try:
        return holds_parameters(decode(file.read(LARGEST_CAPTION_BYTES)))
    except Refused:  # reported when the file is saved
        return False


def _target_of(folder: Path, path: PurePosixPath) -> Path:
    """Return a file's path in a data set, with its folder made; raises `Refused` where a link leads
    out of the data set.
    """
    target = folder / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        leads_out = not is_inside(target.parent, folder)
    except OSError as error:
        raise Refused(
            f"{path.parent} cannot be made: {error.strerror or error}.", code=ErrorCode.BAD_NAME
        ) from error
    if leads_out:
        raise Refused(
            f"{path.parent} is a link that leads out of the data set.", code=ErrorCode.BAD_NAME
        )
    return target


def _has_content(path: Path, data: bytes) -> bool:
    """Tell whether a file has exactly this content; a folder or a pipe has none."""
    try:
        return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError as error:
        raise Refused(
            f"{path.name} is there already and cannot be read: {error.strerror or error}.",
            code=ErrorCode.EXISTS,
        ) from error


def _save(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise Refused(
            f"{path.name} cannot be saved: {error.strerror or error}.", code=ErrorCode.CANNOT_SAVE
        ) from error


def _check_picture(folder: Path, filename: str, data: bytes) -> None:
    """Raise `Refused` for a content that is no usable picture, before it gets its name."""
    unique = f"{hashlib.sha256(data).hexdigest()[:16]}-{threading.get_ident()}"
    trial = folder / f".upload-{unique}{Path(filename).suffix.lower()}"
    try:
        trial.write_bytes(data)
        found = examine(trial)
    except OSError as error:
        raise Refused(
            f"{filename} cannot be saved: {error.strerror or error}.", code=ErrorCode.CANNOT_SAVE
        ) from error
    finally:
        trial.unlink(missing_ok=True)
    if isinstance(found, Problem):
        raise Refused(found.reason.replace(trial.name, filename), code=ErrorCode.NOT_A_PICTURE)
