"""Pixels as the trainer sees them: an image scaled to cover its bucket, cropped, in [-1, 1]; and
the same in other colours.

images decodes, this module places and recolours, training.encoded_dataset makes latents of it.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..base.contracts import Size
from .buckets import Bucket, size_covering
from .images import read_rgb

LUMA = (0.30, 0.59, 0.11)
_YIQ = (LUMA, (0.599, -0.2773, -0.3217), (0.213, -0.5251, 0.3121))  # NTSC, 47 CFR 73.682 (a)(20)


@dataclasses.dataclass(frozen=True)
class Placement:
    """How an image comes into its bucket, in pixels.

    It is scaled to `covering` (width, height), then cropped to `width` x `height` at (`left`,
    `top`).
    """

    covering: tuple[int, int]
    left: int
    top: int
    width: int
    height: int

    def apply(self, image: Image.Image, resample: int = Image.Resampling.LANCZOS) -> Image.Image:
        resized = image.resize(self.covering, resample)
        return resized.crop((self.left, self.top, self.left + self.width, self.top + self.height))


def placement(width: int, height: int, bucket: Bucket, *, whole: bool = False) -> Placement:
    """Place an upright image of this size; what does not fit is cut evenly from both sides.

    With `whole` nothing is cut, except that sides are rounded down to multiples of 8.
    """
    covering = size_covering(width, height, bucket)
    kept_width, kept_height = bucket.width, bucket.height
    if whole:
        kept_width, kept_height = covering[0] // 8 * 8, covering[1] // 8 * 8
    left, top = (covering[0] - kept_width) // 2, (covering[1] - kept_height) // 2
    return Placement(covering, left, top, kept_width, kept_height)


def load_pixels(path: Path, bucket: Bucket, *, whole: bool = False) -> tuple[torch.Tensor, Size]:
    """Read an image into its bucket: float32 `(3, height, width)` in [-1, 1], and SDXL's sizes.

    `whole` as in `placement`.
    """
    image = read_rgb(path)
    place = placement(image.width, image.height, bucket, whole=whole)
    values = np.asarray(place.apply(image), dtype=np.float32) / 127.5 - 1
    pixels = torch.from_numpy(values).permute(2, 0, 1).contiguous()
    size = Size(image.width, image.height, place.left, place.top, bucket.width, bucket.height)
    return pixels, size


def jitter_colors(pixels: torch.Tensor, strength: float, rng: torch.Generator) -> torch.Tensor:
    """Scale brightness, contrast and saturation each by a factor within 1 ± `strength`.

    `pixels` are float32 `(3, height, width)` in [-1, 1], and so is the result. The hue is turned by
    up to `strength / 4` of the colour circle, the proportion of arXiv 2002.05709, appendix A.
    Contrast is about the image's mean luma; saturation and hue are those of YIQ, so they leave the
    luma as it is, where nothing is clipped.
    """
    factors = 1 + strength * (2 * torch.rand(3, generator=rng) - 1)
    brightness, contrast, saturation = factors.tolist()
    turn = math.tau * strength / 4 * (2 * torch.rand((), generator=rng).item() - 1)
    image = ((pixels + 1) / 2 * brightness).clamp(0, 1)
    mean = (image.mean(dim=(1, 2)) * torch.tensor(LUMA)).sum()
    image = (mean + contrast * (image - mean)).clamp(0, 1)
    return torch.einsum("ij,jhw->ihw", _recolouring(saturation, turn), image).clamp(0, 1) * 2 - 1


def _recolouring(saturation: float, turn: float) -> torch.Tensor:
    """Return the `(3, 3)` matrix on RGB that scales and turns (radians) YIQ's two colour axes."""
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64)
    across, along = saturation * math.sin(turn), saturation * math.cos(turn)
    change = torch.tensor([[1, 0, 0], [0, along, -across], [0, across, along]], dtype=torch.float64)
    return (torch.linalg.inv(to_yiq) @ change @ to_yiq).float()
