"""Masks: which part of a picture is learned. From its transparency, or from a grey picture beside
it: white is learned, black is not.

A mask is scaled and cropped exactly as its picture is, then averaged down to the size of the
latents.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops

from ..base.errors import Refused
from .buckets import Bucket
from .images import Placement, has_alpha, placement, upright
from .scan import MASK_ENDING, PICTURE_ENDINGS, TRANSPARENT, Picture, inspect, opened

BLACK_BELOW = 8  # of 255; a mask that is nowhere brighter was meant otherwise
OTHER_SHAPE = 1.02


def find_masks(pictures: Iterable[Path]) -> dict[Path, Path]:
    """Find the mask files of pictures: `name-masklabel.png` beside `name.jpg`, as OneTrainer has
    them, or `mask/name.png`, as for kohya's conditioning images. Each folder is listed once;
    pictures without one are left out.
    """
    paths = list(pictures)
    folders = {path.parent for path in paths}
    listed = {
        folder: _pictures_by_stem(folder)
        for folder in folders | {folder / "mask" for folder in folders}
    }
    found = {}
    for path in paths:
        beside, below = (
            listed[path.parent].get(path.stem + MASK_ENDING),
            listed[path.parent / "mask"].get(path.stem),
        )
        if mask := beside or below:
            found[path] = mask
    return found


def _pictures_by_stem(folder: Path) -> dict[str, Path]:
    """A folder's pictures by stem, a .png before others; nothing for one that is not there."""
    try:
        files = sorted(
            (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS),
            key=lambda path: (path.suffix.lower() == ".png", path.name),
        )
    except OSError:
        return {}
    return {path.stem: path for path in files}


def check_mask(mask: Path, picture: Picture, *, thorough: bool = True) -> str:
    """Return a remark on a mask file, or nothing; raises `Refused` for one that cannot be read. Not
    `thorough`: by its header.
    """
    try:
        facts = inspect(mask, thorough=thorough)
        dark = thorough and _brightest(mask, mask.stat().st_mtime_ns) < BLACK_BELOW
    except OSError as error:
        raise Refused(
            f"{mask.name} cannot be read: {error.strerror or error}.",
            field="masked_loss",
            code="bad_mask",
        ) from error
    if dark:
        return (
            f"The mask {mask.name} is black all over: nothing of {picture.path.name} is learned."
            " White is what is learned."
        )
    ratio = (facts.width / facts.height) / (picture.width / picture.height)
    if max(ratio, 1 / ratio) > OTHER_SHAPE:
        return (
            f"The mask {mask.name} is {facts.width}x{facts.height}, its picture"
            f" {picture.width}x{picture.height}: it is stretched over it."
        )
    return ""


@functools.lru_cache(maxsize=4096)
def _brightest(path: Path, mtime_ns: int) -> int:
    with opened(path) as image:
        return _grey(image).getextrema()[1]


def learns_everywhere(picture: Picture) -> bool:
    """Tell by what is known of a picture whether it has no transparency to make a mask of."""
    return TRANSPARENT not in picture.warnings


def load_mask(
    picture: Picture,
    bucket: Bucket,
    *,
    mask_path: Path | None,
    floor: float = 0.0,
    whole: bool = False,
) -> torch.Tensor | None:
    """Return how much each latent of a picture is learned: float32 `(1, height/8, width/8)` in
    [floor, 1]; None: all of it.

    From the grey file `mask_path`, or without one from the picture's own transparency. Where the
    mask is lower than `floor` that counts instead, as OneTrainer's unmasked weight does. Raises
    `Refused` for a file that cannot be read.
    """
    try:
        with opened(mask_path or picture.path) as image:
            grey = _grey(image) if mask_path else _opacity(image)
    except FileNotFoundError as error:
        raise Refused(f"{(mask_path or picture.path).name} is gone.", code="no_file") from error
    if grey is None:
        return None
    width, height = (picture.width, picture.height) if mask_path else grey.size
    return averaged(grey, placement(width, height, bucket, whole=whole)).clamp(min=floor)


def averaged(grey: Image.Image, place: Placement) -> torch.Tensor:
    """Bring a grey picture into its place and take the mean of each 8x8 pixels: float32 `(1,
    height/8, width/8)` in [0, 1].
    """
    pixels = torch.from_numpy(np.asarray(place.apply(grey, Image.BILINEAR), dtype=np.float32) / 255)
    return torch.nn.functional.avg_pool2d(pixels[None], 8)


def _grey(image: Image.Image) -> Image.Image:
    """A mask file as 8-bit grey; what is transparent is black."""
    mask = upright(image)
    if not has_alpha(mask):
        return mask.convert("L")
    mask = mask.convert("RGBA")
    return ImageChops.multiply(mask.convert("L"), mask.getchannel("A"))


def _opacity(image: Image.Image) -> Image.Image | None:
    picture = upright(image)
    return picture.convert("RGBA").getchannel("A") if has_alpha(picture) else None
