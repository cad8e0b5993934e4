"""Operations on single picture files: rotated, previewed, cropped as training does, and the prompt
that a picture was generated with.
"""

import io
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from ..base.errors import ErrorCode, Refused
from ..dataset.buckets import Bucket
from ..dataset.images import decode_thumbnail, opened, unreadable_refused
from ..dataset.pixels import load_pixels

TURNS = {  # clockwise; Pillow turns the other way
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}
_QUALITY: dict[str, dict[str, int | bool]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90},
}
_COMMENT = 0x9286
_EXIF = 0x8769


def rotated(path: Path, degrees: int) -> bytes:
    """Return a picture turned clockwise, in its own format, lossless where the format is; raises
    `Refused` for one that cannot be.
    """
    if degrees not in TURNS:
        raise Refused(
            f"Pictures are turned by 90, 180 or 270 degrees, not {degrees!r}.",
            field="degrees",
            code=ErrorCode.BAD_VALUE,
        )
    with unreadable_refused(path), opened(path) as image:
        # a phone's MPO contains one picture and its depth
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise Refused(
                f"{path.name} is animated and cannot be turned.", code=ErrorCode.NOT_POSSIBLE
            )
        upright = ImageOps.exif_transpose(image)
        kind = image.format
        extra: dict[str, Any] = dict(_QUALITY.get(kind or "", {}))  # of Pillow's `save`
        if image.format == "PNG":
            extra["pnginfo"] = _texts(image)
        if image.format in ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"):
            extra["icc_profile"] = image.info.get("icc_profile")
        if image.format in ("JPEG", "MPO", "PNG", "WEBP") and (exif := upright.getexif()):
            extra["exif"] = exif.tobytes()
        buffer = io.BytesIO()
        upright.transpose(TURNS[degrees]).save(buffer, "JPEG" if kind == "MPO" else kind, **extra)
    return buffer.getvalue()


def preview(path: Path, side_px: int = 1280) -> bytes:
    """Return a JPEG of the whole picture, upright, at most `side_px` a side."""
    with unreadable_refused(path):
        return _jpeg(decode_thumbnail(path, side_px)[1])


def training_crop(path: Path, bucket: Bucket) -> bytes:
    """Return a JPEG of exactly what training sees of a picture: scaled to its bucket and cropped.

    Raises `Refused` for a file that is no picture.
    """
    with unreadable_refused(path), opened(path):
        pixels, _ = load_pixels(path, bucket)
    rgb = ((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    return _jpeg(Image.fromarray(rgb))


def prompt_of(path: Path) -> str:
    """Return the prompt that a picture was generated with, as a caption without weights and
    `<lora:…>`; "" when it has none.

    The WebUI writes it into PNGs as the text "parameters", into JPEG and WebP as the EXIF field
    UserComment.
    """
    with unreadable_refused(path), opened(path, decodes=False) as image:
        text = image.info.get("parameters") or _comment(image)
    if not isinstance(text, str):
        return ""
    prompt = re.split(r"\n(?:Negative prompt:|Steps: \d)", f"\n{text}", maxsplit=1)[0]
    prompt = re.sub(r"<\w+:[^<>]*>", "", prompt)
    prompt = re.sub(r":\s*[\d.]+\s*(?=[)\]])", "", prompt)
    prompt = re.sub(r"(?<!\\)[()\[\]]", "", prompt)
    tags = (" ".join(tag.split()) for tag in prompt.split(","))
    return ", ".join(tag for tag in tags if tag)


def holds_parameters(text: str) -> bool:
    """Tell whether a text is how the WebUI generated a picture, as in the .txt beside it."""
    return re.search(r"(?m)^Steps: \d+, Sampler: ", text) is not None


def _comment(image: Image.Image) -> str:
    comment = image.getexif().get_ifd(_EXIF).get(_COMMENT, b"")
    if not isinstance(comment, bytes):
        return str(comment)
    character_code, text = comment[:8], comment[8:]
    encoding = "utf-16-be" if character_code.startswith(b"UNICODE") else "utf-8"
    return text.decode(encoding, errors="ignore").strip("\x00")


def _texts(image: Image.Image) -> PngInfo:
    texts = PngInfo()
    for key, value in getattr(image, "text", {}).items():
        texts.add_text(key, value)
    return texts


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
