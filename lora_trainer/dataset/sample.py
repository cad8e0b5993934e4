"""The records of a data set: a picture as it was found on disk, and a sample, which is what a run
does with it.

scan makes pictures, runs.plan makes samples of them, and training.encoded_dataset keeps each sample
beside its latents.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from .buckets import Bucket

Role = Literal["train", "regularisation", "validation"]
ROLES: tuple[Role, ...] = ("train", "regularisation", "validation")  # in the order of a run
TRANSPARENT, NO_CAPTION = "transparent parts become white", "no caption"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A usable picture on disk.

    `width` and `height` are upright, in pixels. `caption` may be empty or have several lines.
    `repeats` 0 leaves the picture out, as in kohya's `0_name`. `file_warnings` is what the user is
    warned of besides transparency and a missing caption. `other_caption` names a second caption
    file beside the picture that says something else.
    """

    path: Path
    width: int
    height: int
    caption: str
    repeats: int = 1
    has_alpha: bool = False
    file_warnings: tuple[str, ...] = ()
    other_caption: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that the user is warned of."""
        transparent = (TRANSPARENT,) if self.has_alpha else ()
        no_caption = () if self.caption else (NO_CAPTION,)
        return (*self.file_warnings, *transparent, *no_caption)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture as a run uses it: one entry for each resolution that it is learned in.

    `caption` is what is encoded, with its trigger word; where captions vary, what each step's
    caption is drawn from. `repeats` are 0 for validation. `loss_weight` multiplies the loss. `mask`
    is the mask file, where one is used. `resolution_px` is the side of the square whose area the
    bucket has.
    """

    picture: Picture
    caption: str
    bucket: Bucket
    role: Role
    repeats: int
    loss_weight: float
    mask: Path | None
    resolution_px: int
