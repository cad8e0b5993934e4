"""Pictures on disk: what is in a folder, which of it can be used, and why the rest cannot.

folder → scan → Picture … → buckets.assign_bucket → pixels.load_pixels;   buckets.epoch_batches
gives the order
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePath

from PIL import Image

from ..base.errors import Refused
from ..base.paths import check_regular_file, is_inside
from .caption_tables import find_table
from .captions import CAPTION_ENDINGS, find_caption
from .images import PICTURE_FORMATS, has_alpha, keep_exif, openable, to_rgb

PICTURE_ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".jfif",
)
MASK_ENDING = (  # of a mask's stem, as OneTrainer names them: cat-masklabel.png beside cat.png
    "-masklabel"
)
TRANSPARENT = "transparent parts become white"
SMALLEST_PX, MOST_PIXELS, WIDEST_RATIO = 16, 120_000_000, 8.0
# at the same time, over all requests: some 12 bytes each while colours are converted
DECODED_PIXELS = 40_000_000
TRIMMED_PIXELS = (
    4_000_000  # pictures above are scaled down before anything else, and their memory is given back
)
MOST_REMEMBERED, MOST_FOLDERS = 60_000, 5000


@dataclasses.dataclass(frozen=True)
class Picture:
    """One usable picture: upright size in pixels, caption (may be empty, or of several lines), how
    often it counts (0: not, as in kohya's `0_name`), remarks for the user, and the name of a second
    caption file that says something else.
    """

    path: Path
    width: int
    height: int
    caption: str
    repeats: int = 1
    warnings: tuple[str, ...] = ()
    other_caption: str = ""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


# --- What is there --------------------------------------------------------------------------------


def scan(
    folder: Path,
    *,
    metadata_path: str = "",
    repeats: int = 1,
    thorough: bool = True,
    caption_ending: str = CAPTION_ENDINGS[0],
    subfolders: str = "kohya",
) -> tuple[list[Picture], list[Problem]]:
    """Look at every picture of a folder, kohya's `10_name` subfolders included, sorted by name.

    Returns those that can be used and those that cannot, each with its reason. Without `thorough`
    only headers are read of pictures that were never decoded, which is a hundred times as fast and
    does not find damage. Raises `Refused` when the folder is not there or cannot be read.
    `subfolders`: "kohya", "none", or "all" that are not hidden, at any depth.
    """
    pictures, problems = [], []
    for place, place_repeats, class_words in _places(folder, repeats, subfolders):
        table = find_table(place, metadata_path)
        for path in sorted(_listed(place), key=lambda path: path.name):
            if not is_picture_file(path):
                continue
            found = examine(
                path,
                table,
                repeats=place_repeats,
                class_words=class_words,
                thorough=thorough,
                caption_ending=caption_ending,
            )
            (pictures if isinstance(found, Picture) else problems).append(found)
    return pictures, problems


def is_picture_file(path: PurePath) -> bool:
    """Tell by its name whether a file is a picture to learn from: not hidden, and not another
    picture's mask.
    """
    return is_picture_name(path.name)


def is_picture_name(name: str) -> bool:
    """As `is_picture_file`, of a name or of a path with slashes."""
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
    """See whether a picture can be used, by decoding it once or (not `thorough`) by its header, and
    read its caption.
    """
    try:
        facts = inspect(path, thorough=thorough)
    except Refused as error:
        return Problem(path, error.message)
    except OSError as error:
        return Problem(path, f"{path.name} cannot be read: {error.strerror or error}.")
    try:
        found = find_caption(path, table, preferred=caption_ending)
    except OSError as error:
        return Problem(
            path, f"The caption file of {path.name} cannot be read: {error.strerror or error}."
        )
    caption = found.text or class_words
    remarks = facts.remarks if caption else (*facts.remarks, "no caption")
    return Picture(path, facts.width, facts.height, caption, repeats, remarks, found.other)


def _listed(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir():
            raise Refused(
                (
                    f"The folder {folder} does not exist."
                    if not folder.exists()
                    else f"{folder} is a file, not a folder."
                ),
                field="train_data_dir",
                code="no_folder",
            )
        return list(folder.iterdir())
    except PermissionError as error:
        raise Refused(
            f"The folder {folder} may not be read: permission denied.",
            field="train_data_dir",
            code="no_permission",
        ) from error
    except OSError as error:
        raise Refused(
            f"The folder {str(folder)[:120]} cannot be read: {error.strerror or error}.",
            field="train_data_dir",
            code="no_folder",
        ) from error


def read_kohya_name(folder: PurePath) -> tuple[int, str] | None:
    """Read a folder name such as kohya's `10_red_cat`: 10 repeats and the class words "red cat";
    None for another name.
    """
    match = re.fullmatch(r"(\d+)_(.+)", folder.name)
    return (int(match[1]), match[2].replace("_", " ")) if match else None


def picture_folders(folder: Path) -> list[Path]:
    """Return the folders that a data set's pictures lie in: itself, and kohya's subfolders. Raises
    OSError.
    """
    return [
        folder,
        *sorted(
            path
            for path in folder.iterdir()
            if read_kohya_name(path) and is_other_folder(path, folder)
        ),
    ]


def is_other_folder(path: Path, folder: Path) -> bool:
    """A link that leads back to the folder, or above it, would show the same pictures twice."""
    return path.is_dir() and not (path.is_symlink() and is_inside(folder, path))


def _places(folder: Path, repeats: int, subfolders: str) -> list[tuple[Path, int, str]]:
    """The folder itself and its subfolders, each with its repeats and class words."""
    _listed(folder)  # refused with a sentence when it cannot be read
    if subfolders != "kohya":
        return [
            (place, repeats, "") for place in ([folder] if subfolders == "none" else _tree(folder))
        ]
    own_repeats, own_words = read_kohya_name(folder) or (repeats, "")
    return [
        (folder, own_repeats if repeats == 1 else repeats, own_words),
        *((path, *read_kohya_name(path)) for path in picture_folders(folder)[1:]),
    ]


def _tree(folder: Path) -> list[Path]:
    found = []
    for place, names, _ in os.walk(folder):  # which follows no link
        names[:] = sorted(name for name in names if not name.startswith("."))
        found.append(Path(place))
        if len(found) > MOST_FOLDERS:
            raise Refused(
                f"There are more than {MOST_FOLDERS:,} folders in {folder}. Choose one of them.",
                field="train_data_dir",
                code="no_folder",
            )
    return found


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a picture is: upright size in pixels, and remarks for the user."""

    width: int
    height: int
    remarks: tuple[str, ...] = ()


def inspect(path: Path, *, thorough: bool = True) -> Facts:
    """Return a picture's facts, after decoding it or (not `thorough`) from its header; raises
    `Refused` when it cannot be used.

    A file that has not changed is not decoded again: plans are made at every key press.
    """
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if thorough and key not in _decoded:
        remember(path, stat, _decode(path))
    found = _decoded.get(key) or _read_header(*key)
    if isinstance(found, Refused):
        raise found
    return found


def remember(path: Path, stat: os.stat_result, found: Facts | Refused) -> None:
    """Keep what decoding a file in the state `stat` has shown."""
    if len(_decoded) >= MOST_REMEMBERED:
        _decoded.clear()
    _decoded[path, stat.st_mtime_ns, stat.st_size] = found


_decoded: dict[tuple[Path, int, int], Facts | Refused] = {}


@functools.lru_cache(maxsize=MOST_REMEMBERED)
def _read_header(path: Path, mtime_ns: int, size: int) -> Facts | Refused:
    try:
        with opened(path, decodes=False) as image:
            return facts_of(image)
    except Refused as error:
        return error


def _decode(path: Path) -> Facts | Refused:
    try:
        with opened(path) as image:
            image.load()
            return facts_of(image)
    except Refused as error:
        return error


def look(path: Path, side_px: int) -> tuple[Facts, Image.Image]:
    """Decode a picture once: its facts, and the whole of it as upright RGB of at most `side_px` a
    side. Raises `Refused` as `inspect`.
    """
    with opened(path) as image:
        facts = facts_of(image)
        image.draft(
            "RGB", (2 * side_px, 2 * side_px)
        )  # a JPEG is decoded at a fraction of its size
        if (
            image.width * image.height > TRIMMED_PIXELS
            and image.mode in ("RGB", "RGBA", "L", "LA")
            and "transparency" not in image.info
        ):
            image.thumbnail(
                (2 * side_px, 2 * side_px)
            )  # first: every conversion makes a copy of all pixels
        small = to_rgb(image)
        small.thumbnail((side_px, side_px), Image.LANCZOS)
    return facts, small


def facts_of(image: Image.Image) -> Facts:
    """Return a picture's facts as far as its header tells; what is after a PNG's pixels is seen
    only when they were read.
    """
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    return Facts(width, height, tuple(_remarks(image)))


def _orientation(image: Image.Image) -> int | None:
    known = image.format != "PNG" or any(
        key in image.info for key in ("exif", "Raw profile type exif")
    )
    return (
        image.getexif().get(0x0112) if known else None
    )  # for a PNG without, Pillow would decode all of it to be sure


def _trim_memory() -> None:
    """Give the system back what is free: glibc keeps it, once more for each thread that has decoded
    a large picture.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


class _Decoding:
    """Lets so many pixels be decoded at the same time; who comes later waits, in turn. A thread
    that is inside may open more.
    """

    def __init__(self, most_pixels: int) -> None:
        self._most, self._used, self._own = most_pixels, 0, threading.local()
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def room_for(self, pixels: int) -> Iterator[None]:
        """Wait until there is room; a picture that is larger than all of it gets it all."""
        wanted = 0 if getattr(self._own, "inside", False) else min(pixels, self._most)
        with self._turn if wanted else contextlib.nullcontext(), self._changed:
            self._changed.wait_for(lambda: self._used + wanted <= self._most)
            self._used += wanted
        outermost, self._own.inside = not getattr(self._own, "inside", False), True
        try:
            yield
        finally:
            if outermost:
                self._own.inside = False
            if wanted >= TRIMMED_PIXELS:
                _trim_memory()
            with self._changed:
                self._used -= wanted
                self._changed.notify_all()


_decoding = _Decoding(DECODED_PIXELS)


@contextlib.contextmanager
def opened(path: Path, *, decodes: bool = True) -> Iterator[Image.Image]:
    """Open a picture by its content; whatever Pillow raises inside becomes a `Refused` that says
    what is wrong with the file.

    Those that are decoded wait until there is room for their pixels; where only the header is asked
    for (not `decodes`), nobody waits.
    """
    check_regular_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=openable()) as image:
                _check_size(path, *image.size)
                keep_exif(image)
                with (
                    _decoding.room_for(image.width * image.height)
                    if decodes
                    else contextlib.nullcontext()
                ):
                    yield image
        except Image.UnidentifiedImageError as error:
            raise Refused(
                f"{path.name} is not a picture (its content is none of"
                f" {', '.join(PICTURE_FORMATS[:5])}).",
                code="not_a_picture",
            ) from error
        except Image.DecompressionBombError as error:
            raise Refused(
                f"{path.name} is too large: {error}. At most {MOST_PIXELS // 1_000_000} million"
                " pixels.",
                code="too_large",
            ) from error
        except Refused:
            raise
        except FileNotFoundError:
            raise
        # Pillow raises what it likes at damaged files: TypeError, SyntaxError, struct.error
        except Exception as error:
            raise Refused(
                f"{path.name} is damaged or cut off: {error}. Save it again in a picture editor.",
                code="damaged",
            ) from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Refused(
            f"{path.name} is {width}x{height}; at most {MOST_PIXELS // 1_000_000} million pixels"
            " can be used. Scale it down.",
            code="too_large",
        )
    if min(width, height) < SMALLEST_PX:
        raise Refused(
            f"{path.name} is {width}x{height}; a side needs at least {SMALLEST_PX} pixels.",
            code="too_small",
        )
    if max(width, height) > WIDEST_RATIO * min(width, height):
        raise Refused(
            f"{path.name} is {width}x{height}; one side may be at most {WIDEST_RATIO:g} times the"
            " other. Crop it.",
            code="too_narrow",
        )


def _remarks(image: Image.Image) -> list[str]:
    remarks = []
    if getattr(image, "is_animated", False):  # not n_frames, which reads a GIF to its end
        remarks.append(
            "several pages: only the first is used"
            if image.format == "TIFF"
            else "animated: only the first frame is used"
        )
    if has_alpha(image):
        remarks.append(TRANSPARENT)
    return remarks
