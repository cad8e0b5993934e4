"""Masks: which parts of a picture are learned.

They come from a picture's transparency, or from a grey image beside it (white is learned, black is
not). A mask is scaled and cropped exactly as its picture, then averaged down to the size of the
latents.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops

from ..base.errors import ErrorCode, Refused
from .buckets import Bucket
from .images import (
    PICTURE_ENDINGS,
    has_alpha,
    opened,
    read_facts,
    unreadable,
    unreadable_refused,
    upright,
)
from .pixels import Placement, placement
from .sample import Picture
from .scan import MASK_ENDING

BLACK_BELOW = 8  # of 255; a mask that is nowhere brighter was meant otherwise
OTHER_SHAPE = 1.02  # how much longer or wider than its picture a mask may be


def find_masks(pictures: Iterable[Path]) -> dict[Path, Path]:
    """Find the mask files of pictures; those without one are left out.

    A mask is `name-masklabel.png` beside `name.jpg`, as OneTrainer has them, or `mask/name.png`, as
    kohya's conditioning images. Each folder is listed once.
    """
    paths = list(pictures)
    folders = {path.parent for path in paths}
    places = folders | {folder / "mask" for folder in folders}
    listed = {folder: _images_by_stem(folder) for folder in places}
    found = {}
    for path in paths:
        beside = listed[path.parent].get(path.stem + MASK_ENDING)
        below = listed[path.parent / "mask"].get(path.stem)
        if mask := beside or below:
            found[path] = mask
    return found


def _images_by_stem(folder: Path) -> dict[str, Path]:
    """Return a folder's image files by stem, a .png before others; none if it cannot be read."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS]
    except OSError:
        return {}
    files.sort(key=lambda path: (path.suffix.lower() == ".png", path.name))
    return {path.stem: path for path in files}


def check_mask(mask: Path, picture: Picture, *, thorough: bool = True) -> str:
    """Return a warning about a mask file, or ""; not `thorough`: by its header alone.

    Raises `Refused` for a file that cannot be read.
    """
    try:
        facts = read_facts(mask, thorough=thorough)
        is_black = thorough and _brightest(mask, mask.stat().st_mtime_ns) < BLACK_BELOW
    except OSError as error:
        raise Refused(
            f"{mask.name} cannot be read: {error.strerror or error}.",
            field="masked_loss",
            code=ErrorCode.BAD_MASK,
        ) from error
    except MemoryError as error:
        raise unreadable(mask, error) from error
    if is_black:
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
        return max(value for value, count in enumerate(_grey(image).histogram()) if count)


def is_opaque(picture: Picture) -> bool:
    """Tell whether scanning found no transparency in a picture to make a mask of."""
    return not picture.has_alpha


def load_mask(
    picture: Picture,
    bucket: Bucket,
    *,
    mask_path: Path | None,
    floor: float = 0.0,
    whole: bool = False,
) -> torch.Tensor | None:
    """Return how much each latent is learned: float32 `(1, height/8, width/8)` in [floor, 1].

    It comes from the grey file `mask_path`, or without one from the picture's own transparency;
    None if that has none. Values below `floor` are raised to it, as by OneTrainer's unmasked
    weight. `whole` as in `placement`. Raises `Refused` for a file that is gone or cannot be read.
    """
    path = mask_path or picture.path
    with unreadable_refused(path), opened(path) as image:
        grey = _grey(image) if mask_path else _opacity(image)
    if grey is None:
        return None
    width, height = (picture.width, picture.height) if mask_path else grey.size
    place = placement(width, height, bucket, whole=whole)
    return _latent_mask(grey, place).clamp(min=floor)


def _latent_mask(grey: Image.Image, place: Placement) -> torch.Tensor:
    """Place a grey image and average 8x8 pixels: float32 `(1, height/8, width/8)` in [0, 1]."""
    pixels = torch.from_numpy(
        np.asarray(place.apply(grey, Image.Resampling.BILINEAR), dtype=np.float32) / 255
    )
    return torch.nn.functional.avg_pool2d(pixels[None], 8)


def _grey(image: Image.Image) -> Image.Image:
    """Return a mask file as 8-bit grey; what is transparent is black."""
    mask = upright(image)
    if not has_alpha(mask):
        return mask.convert("L")
    mask = mask.convert("RGBA")
    return ImageChops.multiply(mask.convert("L"), mask.getchannel("A"))


def _opacity(image: Image.Image) -> Image.Image | None:
    picture = upright(image)
    return picture.convert("RGBA").getchannel("A") if has_alpha(picture) else None
