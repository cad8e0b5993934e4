"""A picture's pixels as the trainer sees them: upright RGB, scaled to cover its bucket, cropped;
and the same in other colours.
"""

import dataclasses
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..base.contracts import Size
from ..base.paths import check_regular_file
from .buckets import Bucket, covering_of

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "MPO")
ROWS, _ORIENTATION = 256, 0x0112
LUMA = (0.30, 0.59, 0.11)
_YIQ = (LUMA, (0.599, -0.2773, -0.3217), (0.213, -0.5251, 0.3121))  # NTSC, 47 CFR 73.682 (a)(20)


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a picture comes into its bucket, in pixels: scaled to `covering` (width, height), then
    cut to `width` x `height` at (`left`, `top`).
    """

    covering: tuple[int, int]
    left: int
    top: int
    width: int
    height: int

    def apply(self, image: Image.Image, resample: int = Image.LANCZOS) -> Image.Image:
        resized = image.resize(self.covering, resample)
        return resized.crop((self.left, self.top, self.left + self.width, self.top + self.height))


def placement(width: int, height: int, bucket: Bucket, *, whole: bool = False) -> Placement:
    """Place an upright picture of this size. What does not fit is cut evenly from both sides;
    `whole` keeps it, with sides rounded down to multiples of 8.
    """
    covering = covering_of(width, height, bucket)
    kept = (covering[0] // 8 * 8, covering[1] // 8 * 8) if whole else (bucket.width, bucket.height)
    return Placement(covering, (covering[0] - kept[0]) // 2, (covering[1] - kept[1]) // 2, *kept)


def load_pixels(path: Path, bucket: Bucket, *, whole: bool = False) -> tuple[torch.Tensor, Size]:
    """Read a picture upright and scale it to cover its bucket: float32 `(3, height, width)` in [-1,
    1], and what SDXL is told.

    The part that does not fit is cut as in `placement`.
    """
    image = read_rgb(path)
    place = placement(image.width, image.height, bucket, whole=whole)
    pixels = (
        torch.from_numpy(np.asarray(place.apply(image), dtype=np.float32) / 127.5 - 1)
        .permute(2, 0, 1)
        .contiguous()
    )
    return pixels, Size(
        image.width, image.height, place.left, place.top, bucket.width, bucket.height
    )


def openable() -> list[str]:
    """Return the formats that this Pillow can open."""
    Image.init()
    return [name for name in PICTURE_FORMATS if name in Image.OPEN]


def read_rgb(path: Path) -> Image.Image:
    """Read any picture as upright 8-bit RGB: EXIF rotation applied, first frame, transparency on
    white, CMYK and 16 bit converted.
    """
    check_regular_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=openable()) as opened:
            keep_exif(opened)
            return to_rgb(opened)


def keep_exif(opened: Image.Image) -> None:
    """Read the EXIF data of a TIFF: Pillow 9.5 cannot any more once it has read the pixels."""
    if opened.format == "TIFF":
        opened.getexif()


def to_rgb(opened: Image.Image) -> Image.Image:
    """As `read_rgb`, of a picture that is open."""
    image = upright(opened)
    return _on_white(image) if has_alpha(image) else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a picture with transparency on white, some rows at a time: each step of it makes a
    copy.
    """
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        rows = image.crop((0, top, image.width, min(image.height, top + ROWS))).convert("RGBA")
        whole.paste(
            Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows).convert("RGB"),
            (0, top),
        )
    return whole


def upright(opened: Image.Image) -> Image.Image:
    """Return a picture as the camera says, of 8 bits: the very one that is open where nothing is to
    be done.
    """
    opened.load()
    image = (
        opened if opened.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(opened)
    )
    return _eight_bits(image) if image.mode in ("I", "I;16", "I;16B", "I;16L", "F") else image


def has_alpha(image: Image.Image) -> bool:
    """Tell whether a picture's kind has transparency, by its header."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit or float grey to 8 bits; Pillow's own conversion would cut at 255."""
    values = np.asarray(image, dtype=np.float32)
    top = (
        65535
        if image.mode.startswith("I") and values.max() > 255
        else max(float(values.max()), 1.0)
        if image.mode == "F"
        else 255
    )
    return Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))


# --- Other colours --------------------------------------------------------------------------------


def jittered(pixels: torch.Tensor, strength: float, draws: torch.Generator) -> torch.Tensor:
    """Return pixels float32 `(3, height, width)` in [-1, 1] with brightness, contrast and
    saturation each times a number within 1 ± `strength`.

    The hue is turned by up to `strength / 4` of the colour circle, the proportion of arXiv
    2002.05709, appendix A. Contrast is about the picture's mean luma; saturation and hue are those
    of YIQ, so they leave the luma as it is, where nothing is clipped.
    """
    brightness, contrast, saturation = (
        1 + strength * (2 * torch.rand(3, generator=draws) - 1)
    ).tolist()
    turn = math.tau * strength / 4 * (2 * torch.rand((), generator=draws).item() - 1)
    image = ((pixels + 1) / 2 * brightness).clamp(0, 1)
    mean = (image.mean(dim=(1, 2)) * torch.tensor(LUMA)).sum()
    image = (mean + contrast * (image - mean)).clamp(0, 1)
    return torch.einsum("ij,jhw->ihw", _recolouring(saturation, turn), image).clamp(0, 1) * 2 - 1


def _recolouring(saturation: float, turn: float) -> torch.Tensor:
    """Return the `(3, 3)` matrix on RGB that scales and turns (radians) the two colour axes of
    YIQ.
    """
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64)
    across, along = saturation * math.sin(turn), saturation * math.cos(turn)
    change = torch.tensor([[1, 0, 0], [0, along, -across], [0, across, along]], dtype=torch.float64)
    return (torch.linalg.inv(to_yiq) @ change @ to_yiq).float()
