"""Image files: opening them whatever they claim to be, what their headers say, and decoding them to
upright RGB.

scan asks for facts, pixels for the decoded image. An error that Pillow raises becomes a `Refused`
that says what is wrong with the file.
"""

import contextlib
import dataclasses
import functools
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..base.errors import ErrorCode, Refused
from ..base.paths import check_regular_file
from .decode_limit import TRIMMED_PIXELS, DecodeLimit
from .sample import TRANSPARENT

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "MPO")
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
SMALLEST_PX, MOST_PIXELS, WIDEST_RATIO = 16, 120_000_000, 8.0
MOST_REMEMBERED = 60_000
ROWS, _ORIENTATION = 256, 0x0112

_decode_limit = DecodeLimit(40_000_000)
_warning_filters = threading.Lock()
"""Held while Python's filters of warnings, which all threads share, are changed and put back."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a header says of an image: upright size in pixels, transparency, and what else the user
    is warned of.
    """

    width: int
    height: int
    has_alpha: bool = False
    file_warnings: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that the user is warned of."""
        return (*self.file_warnings, TRANSPARENT) if self.has_alpha else self.file_warnings


# --- Facts ----------------------------------------------------------------------------------------


def read_facts(path: Path, *, thorough: bool = True) -> Facts:
    """Return the facts of an image, after decoding it or (not `thorough`) from its header.

    A file that has not changed is not decoded again: plans are made at every key press. Raises
    `Refused` when the image cannot be used, and OSError.
    """
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if thorough and key not in _decoded:
        remember(path, stat.st_mtime_ns, stat.st_size, _decode(path))
    found = _decoded.get(key) or _read_header(*key)
    if isinstance(found, Refused):  # it is kept: raised itself, its traceback would grow
        raise Refused(found.message, field=found.field, code=found.code, details=found.details)
    return found


def remember(path: Path, mtime_ns: int, size: int, found: Facts | Refused) -> None:
    """Keep what decoding a file gave that had this time stamp and size."""
    if len(_decoded) >= MOST_REMEMBERED:
        _decoded.clear()
    _decoded[path, mtime_ns, size] = found


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


def facts_of(image: Image.Image) -> Facts:
    """Return the facts of an open image, as far as its header tells them.

    What stands behind a PNG's pixels is known only once they were decoded.
    """
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    return Facts(width, height, has_alpha(image), tuple(_warnings(image)))


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation; Pillow would decode a PNG without EXIF data to be sure."""
    has_exif = any(key in image.info for key in ("exif", "Raw profile type exif"))
    if image.format == "PNG" and not has_exif:
        return None
    return image.getexif().get(_ORIENTATION)


def _warnings(image: Image.Image) -> list[str]:
    if not getattr(image, "is_animated", False):  # not n_frames, which reads a GIF to its end
        return []
    if image.format == "TIFF":
        return ["several pages: only the first is used"]
    return ["animated: only the first frame is used"]


# --- Opening --------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path, *, decodes: bool = True) -> Iterator[Image.Image]:
    """Open an image by its content; what Pillow raises at a bad file becomes a `Refused`.

    Images that are decoded wait until `DecodeLimit` has room for their pixels. With `decodes` False
    only the header is read, and nothing waits. Raises OSError where the disk fails, and
    MemoryError: they say nothing about the file.
    """
    check_regular_file(path)
    with _as_refusals(path), _open(path) as image:
        _check_size(path, *image.size)
        keep_exif(image)
        pixels = image.width * image.height
        with _decode_limit.room_for(pixels) if decodes else contextlib.nullcontext():
            yield image


def _open(path: Path) -> Image.Image:
    """Open an image without Pillow's warning of many pixels; there is a limit of our own."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=openable())


@contextlib.contextmanager
def _as_refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise Refused(
            f"{path.name} is not a picture (its content is none of"
            f" {', '.join(PICTURE_FORMATS[:5])}).",
            code=ErrorCode.NOT_A_PICTURE,
        ) from error
    except Image.DecompressionBombError as error:
        raise Refused(
            f"{path.name} is too large: {error}. At most {MOST_PIXELS // 1_000_000} million"
            " pixels.",
            code=ErrorCode.TOO_LARGE,
        ) from error
    except (Refused, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:  # the system's; Pillow's own, of files cut off, have none
            raise
        raise _damaged(path, error) from error
    # Pillow raises what it likes at damaged files: TypeError, SyntaxError, struct.error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> Refused:
    return Refused(
        f"{path.name} is damaged or cut off: {error}. Save it again in a picture editor.",
        code=ErrorCode.DAMAGED,
    )


def unreadable(path: Path, error: OSError | MemoryError) -> Refused:
    """Return the refusal of an image that cannot be read now, whatever it holds."""
    if isinstance(error, FileNotFoundError):
        return Refused(f"{path.name} is gone.", code=ErrorCode.NO_FILE)
    if isinstance(error, MemoryError):
        return Refused(
            f"There is not enough memory to open {path.name}. Close other programs.",
            code=ErrorCode.OUT_OF_MEMORY,
        )
    code = ErrorCode.NO_PERMISSION if isinstance(error, PermissionError) else ErrorCode.DAMAGED
    return Refused(f"{path.name} cannot be read: {error.strerror or error}.", code=code)


@contextlib.contextmanager
def unreadable_refused(path: Path) -> Iterator[None]:
    """Raise `Refused` where reading an image fails inside, also by OSError or MemoryError."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Refused(
            f"{path.name} is {width}x{height}; at most {MOST_PIXELS // 1_000_000} million pixels"
            " can be used. Scale it down.",
            code=ErrorCode.TOO_LARGE,
        )
    if min(width, height) < SMALLEST_PX:
        raise Refused(
            f"{path.name} is {width}x{height}; a side needs at least {SMALLEST_PX} pixels.",
            code=ErrorCode.TOO_SMALL,
        )
    if max(width, height) > WIDEST_RATIO * min(width, height):
        raise Refused(
            f"{path.name} is {width}x{height}; one side may be at most {WIDEST_RATIO:g} times the"
            " other. Crop it.",
            code=ErrorCode.TOO_NARROW,
        )


def openable() -> list[str]:
    """Return the formats that this Pillow can open."""
    Image.init()
    return [name for name in PICTURE_FORMATS if name in Image.OPEN]


def keep_exif(opened: Image.Image) -> None:
    """Read the EXIF data of a TIFF: Pillow 9.5 cannot once it has decoded the pixels."""
    if opened.format == "TIFF":
        opened.getexif()


# --- Decoding -------------------------------------------------------------------------------------


def decode_thumbnail(path: Path, side_px: int) -> tuple[Facts, Image.Image]:
    """Decode an image once: its facts, and all of it as upright RGB of at most `side_px` a side.

    Raises as `opened`.
    """
    twice = (2 * side_px, 2 * side_px)
    with opened(path) as image:
        facts = facts_of(image)
        image.draft("RGB", twice)  # a JPEG is decoded at a fraction of its size
        if _can_shrink_first(image):
            image.thumbnail(twice)
        small = to_rgb(image)
        small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return facts, small


def _can_shrink_first(image: Image.Image) -> bool:
    """Tell whether an image is better scaled before its colours are converted, which copies it."""
    return (
        image.width * image.height > TRIMMED_PIXELS
        and image.mode in ("RGB", "RGBA", "L", "LA")
        and "transparency" not in image.info
    )


def read_rgb(path: Path) -> Image.Image:
    """Read any image as upright 8-bit RGB: first frame, EXIF rotation applied, transparency white.

    CMYK and 16 bit are converted.
    """
    check_regular_file(path)
    with _open(path) as opened:
        keep_exif(opened)
        return to_rgb(opened)


def to_rgb(opened: Image.Image) -> Image.Image:
    """Convert an open image as `read_rgb` does."""
    image = upright(opened)
    return _on_white(image) if has_alpha(image) else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a transparent image on white, `ROWS` rows at a time, as every step makes a copy."""
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        bottom = min(image.height, top + ROWS)
        rows = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", rows.size, "white")
        whole.paste(Image.alpha_composite(white, rows).convert("RGB"), (0, top))
    return whole


def upright(opened: Image.Image) -> Image.Image:
    """Return an open image turned as its EXIF data say, in 8 bits; itself if nothing changes."""
    opened.load()
    image = opened
    if opened.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(opened)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        return _eight_bits(image)
    return image


def has_alpha(image: Image.Image) -> bool:
    """Tell by its header whether an image has transparency."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit or float grey to 8 bits; Pillow's own conversion would cut at 255."""
    values = np.asarray(image, dtype=np.float32)
    brightest = 255.0
    if image.mode.startswith("I") and values.max() > 255:
        brightest = 65535.0
    elif image.mode == "F":
        brightest = max(float(values.max()), 1.0)
    return Image.fromarray(np.clip(values / brightest * 255, 0, 255).astype(np.uint8))
