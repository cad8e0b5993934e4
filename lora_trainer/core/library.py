"""Data sets by name: folders under the data folder, or any folder the user names; uploads, captions and thumbnails.

    datasets/<name>/                pictures and captions
    datasets/<name>/.train_lora/    thumbnails, and folder.json when the data set is a folder elsewhere
"""
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from PIL import Image

from .captions import TABLE_NAMES, split_tags, write_atomically, write_caption
from .config import check_name, is_plain_text
from .dataset import PICTURE_ENDINGS, Picture, Problem, examine, read_rgb, scan
from .errors import Refused

THUMBNAIL_PX = 256
LARGEST_UPLOAD_BYTES, LARGEST_CAPTION_BYTES = 64_000_000, 100_000


class Library:
    """The data sets of one data folder. `check_path` raises `Refused` for a folder that may not be read from here."""

    def __init__(self, folder: Path, check_path: Callable[[Path], None] = lambda path: None) -> None:
        self._folder, self._check_path = folder, check_path

    def all(self) -> list[dict]:
        """Every data set, by name: `{name, path, pictures}`."""
        homes = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return [self._summary(home.name) for home in homes if home.is_dir() and not home.name.startswith(".")]

    def create(self, name: str | None, path: str | None = None) -> dict:
        """Make an empty data set, or adopt a folder; an existing one of that name is returned as it is. Raises `Refused`."""
        folder = self._adoptable(path) if path else None
        name = _checked_name(name or (folder.name if folder else self._free("pictures")))
        home = self._folder / name
        if folder and home.is_dir() and self.path(name) != folder:
            name = self._free(name)
            home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        if folder:
            self._own(name).mkdir(exist_ok=True)
            write_atomically(self._own(name) / "folder.json", json.dumps({"path": str(folder)}, ensure_ascii=False).encode("utf-8"))
        return self._summary(name)

    def path(self, name: str) -> Path:
        """Return the folder of a data set; raises `Refused` (code "not_found")."""
        home = self._folder / name if _is_plain(name) else None
        if home is None or not home.is_dir():
            raise Refused(f"There is no data set called {name!r}.", field="train_data_dir", code="not_found")
        pointer = home / ".train_lora" / "folder.json"
        if not pointer.is_file():
            return home
        try:
            folder = Path(json.loads(pointer.read_text(encoding="utf-8"))["path"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(f"The data set {name} points to a folder, but {pointer} cannot be read. Add the folder again.", code="not_found") from error
        self._check_path(folder)                                                   # it may have been added when only this machine could ask
        return folder

    def resolve(self, name_or_folder: str) -> Path:
        """Return the folder that a user means: a data set's name first, else a path."""
        if _is_plain(name_or_folder) and (self._folder / name_or_folder).is_dir():
            return self.path(name_or_folder)
        folder = Path(name_or_folder).expanduser()
        self._check_path(folder)
        return folder

    def describe(self, name: str) -> dict:
        """Say what is in a data set: `{name, path, pictures: [...], problems: [...]}`."""
        folder = self.path(name)
        pictures, problems = scan(folder)
        return {**self._summary(name), "pictures": [self._row(name, folder, picture) for picture in pictures],
                "problems": [{"filename": _relative(problem.path, folder), "reason": problem.reason} for problem in problems]}

    def add(self, name: str, filename: str, data: bytes) -> str:
        """Save an uploaded picture or caption under its own name and return that; raises `Refused` with the reason."""
        folder = self.path(name)
        filename = _safe_filename(filename)
        ending = Path(filename).suffix.lower()
        limit = LARGEST_CAPTION_BYTES if ending == ".txt" else LARGEST_UPLOAD_BYTES
        if len(data) > limit:
            raise Refused(f"{filename} has {len(data) / 1e6:.1f} MB; at most {limit / 1e6:g} MB.", code="too_large")
        target = folder / filename
        if target.exists() and target.read_bytes() != data:
            raise Refused(f"{filename} is there already, with other content. Rename one of them.", code="exists")
        if ending in PICTURE_ENDINGS:
            _check_picture(folder, filename, data)
        if not target.exists():
            write_atomically(target, data)
        return filename

    def set_captions(self, name: str, changes: dict[str, str]) -> list[str]:
        """Save captions at once, all names checked before the first is written; raises `Refused` for one that is not a picture here."""
        folder = self.path(name)
        pictures = [self._picture_path(folder, filename) for filename in changes]
        for filename, caption in changes.items():
            if not isinstance(caption, str) or not is_plain_text(caption) or len(caption.encode("utf-8", "replace")) > LARGEST_CAPTION_BYTES:
                raise Refused(f"The caption of {filename} is not text of at most {LARGEST_CAPTION_BYTES // 1000} kB.", field="changes", code="bad_value")
        for picture, caption in zip(pictures, changes.values()):
            write_caption(picture, caption)
        return list(changes)

    def thumbnail(self, name: str, filename: str) -> Path:
        """Return a small JPEG of a picture, made once; raises `Refused` for anything that is not a picture of this data set."""
        picture = self._picture_path(self.path(name), filename)
        stat = picture.stat()
        key = hashlib.sha256(f"{picture}/{stat.st_mtime_ns}/{stat.st_size}".encode()).hexdigest()[:24]
        thumbnail = self._own(name) / "thumbnails" / f"{key}.jpg"
        if not thumbnail.is_file():
            if isinstance(found := examine(picture), Problem):
                raise Refused(found.reason, code="not_a_picture")
            thumbnail.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(thumbnail, _jpeg(picture))
        return thumbnail

    # --- Inside ----------------------------------------------------------------------------------------------------------

    def _own(self, name: str) -> Path:
        return self._folder / name / ".train_lora"

    def _summary(self, name: str) -> dict:
        try:
            folder = self.path(name)
            count = sum(1 for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)
        except (OSError, Refused):
            return {"name": name, "path": "", "pictures": 0}
        return {"name": name, "path": str(folder), "pictures": count}

    def _row(self, name: str, folder: Path, picture: Picture) -> dict:
        from urllib.parse import quote
        filename = _relative(picture.path, folder)
        stamp = int(picture.path.stat().st_mtime)
        return {"filename": filename, "width": picture.width, "height": picture.height, "caption": picture.caption, "tags": split_tags(picture.caption),
                "repeats": picture.repeats, "warnings": list(picture.warnings), "thumbnail": f"datasets/{quote(name)}/thumbnails/{quote(filename)}?{stamp}"}

    def _adoptable(self, path: str) -> Path:
        folder = Path(path.strip().strip('"')).expanduser()
        self._check_path(folder)
        scan_error = None
        try:
            if not folder.is_dir():
                scan_error = f"The folder {str(folder)[:200]} does not exist." if not folder.exists() else f"{folder} is a file, not a folder."
            else:
                next(folder.iterdir(), None)
        except OSError as error:
            scan_error = f"The folder {str(folder)[:200]} cannot be read: {error.strerror or error}."
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

    def _picture_path(self, folder: Path, filename: str) -> Path:
        """Return a picture's path if it really lies in the folder (or a kohya subfolder): no `..`, no link that leads out."""
        path = folder / filename
        inside = path.parent == folder or (path.parent.parent == folder and re.match(r"\d+_", path.parent.name))
        if not inside or ".." in Path(filename).parts or path.suffix.lower() not in PICTURE_ENDINGS or not path.is_file() \
                or not path.resolve().is_relative_to(folder.resolve()):
            raise Refused(f"There is no picture {filename!r} in this data set.", field="changes", code="not_found")
        return path


def _is_plain(name: str) -> bool:
    return bool(name) and is_plain_text(name) and name not in (".", "..") and not name.startswith(".") and not re.search(r'[\\/:\x00]', name) and len(name.encode()) < 240


def _checked_name(name: str) -> str:
    try:
        return check_name(name)
    except Refused as error:
        raise Refused(error.message.split(". Use ")[0] + ". Choose another name for the data set.", field="name", code="bad_name") from error


def _safe_filename(filename: str) -> str:
    name = PureWindowsPath(str(filename)).name.strip()
    if not name or name.startswith(".") or re.search(r'[<>:"|?*\x00-\x1f]', name) or not is_plain_text(name) or len(name.encode("utf-8", "replace")) > 200:
        raise Refused(f"{str(filename)[:80]!r} cannot be used as a file name. Rename it.", code="bad_name")
    if Path(name).suffix.lower() not in (*PICTURE_ENDINGS, ".txt") and name.lower() not in TABLE_NAMES:
        raise Refused(f"{name} is neither a picture ({', '.join(PICTURE_ENDINGS[:5])}, …) nor a caption (.txt, metadata.csv).", code="not_a_picture")
    return name


def _check_picture(folder: Path, filename: str, data: bytes) -> None:
    """Refuse what is not a usable picture by its content, before it gets its name."""
    trial = folder / f".upload-{hashlib.sha256(data).hexdigest()[:16]}-{threading.get_ident()}{Path(filename).suffix.lower()}"
    try:
        trial.write_bytes(data)
        found = examine(trial)
    except OSError as error:
        raise Refused(f"{filename} cannot be saved: {error.strerror or error}.", code="cannot_save") from error
    finally:
        trial.unlink(missing_ok=True)
    if isinstance(found, Problem):
        raise Refused(found.reason.replace(trial.name, filename), code="not_a_picture")


def _jpeg(picture: Path) -> bytes:
    image = read_rgb(picture)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
