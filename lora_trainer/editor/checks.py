"""What a person should know of each picture before training on it: missing and long captions,
near-duplicates, pictures that are too small or that lose much to the crop. Pure functions.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypedDict

from ..dataset.buckets import Bucket, bucket_for, crop_of
from ..dataset.captions import contains_word, loras_in
from ..settings.config import TrainConfig

MOST_ENLARGED = 1.05
MOST_CUT = 0.2
ODD_RATIO = 2.0
TITLES = {  # worst first
    "unreadable": "cannot be used",
    "no_caption": "no caption",
    "long_caption": "caption too long",
    "no_trigger": "trigger word missing",
    "near_duplicate": "near-duplicates",
    "shared_caption": "shared caption",
    "two_captions": "two captions",
    "lora_in_caption": "LoRA in the caption",
    "small": "too small",
    "odd_ratio": "odd shape",
}


@dataclasses.dataclass(frozen=True)
class CheckSettings:
    """The training settings that pictures are checked against; as in TrainConfig."""

    resolution: int = TrainConfig.resolution
    bucket_step: int = TrainConfig.bucket_step
    enable_bucket: bool = TrainConfig.enable_bucket
    trigger_word: str = TrainConfig.trigger_word
    bucket_min: int = TrainConfig.bucket_min
    bucket_max: int = TrainConfig.bucket_max
    bucket_no_upscale: bool = TrainConfig.bucket_no_upscale
    max_token_length: int = TrainConfig.max_token_length
    caption_lines: str = TrainConfig.caption_lines
    caption_extension: str = TrainConfig.caption_extension


class CropView(TypedDict):
    """A `Crop` as JSON; `bucket` is its width and height."""

    bucket: list[int]
    left: float
    top: float
    width: float
    height: float


class WarningCount(TypedDict):
    code: str
    title: str
    count: int


@dataclasses.dataclass(frozen=True)
class Crop:
    """The part of an upright picture that training sees, in its pixels, and its bucket."""

    bucket: Bucket
    left: float
    top: float
    width: float
    height: float

    def to_json(self) -> CropView:
        return {
            "bucket": [self.bucket.width, self.bucket.height],
            "left": self.left,
            "top": self.top,
            "width": self.width,
            "height": self.height,
        }


@dataclasses.dataclass(frozen=True)
class CheckedPicture:
    """What the checks look at: the upright size in pixels, the caption and its CLIP tokens (None:
    not counted yet), and other pictures by name.

    `other_caption` is the name of a second caption file that says something else.
    """

    width: int
    height: int
    crop: Crop
    caption: str
    tokens: int | None = None
    other_caption: str = ""
    near_duplicates: Sequence[str] = ()
    sharing_caption: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class PictureWarning:
    """A warning about one picture; codes are those of `TITLES`."""

    code: str
    message: str


def check_picture(picture: CheckedPicture, settings: CheckSettings) -> list[PictureWarning]:
    """Return the warnings about a picture."""
    warnings = (
        _check_caption(picture),
        _check_tokens(picture, settings),
        _check_trigger_word(picture, settings),
        _check_other_caption(picture, settings),
        _check_loras(picture),
        _check_duplicates(picture),
        _check_sharing(picture),
        _check_size(picture),
        _check_shape(picture),
    )
    return [warning for warning in warnings if warning]


def crop_for(width: int, height: int, settings: CheckSettings) -> Crop:
    """Return the part that training sees of a picture of this upright size in pixels."""
    bucket = bucket_for(width, height, settings)
    left, top, kept_width, kept_height = crop_of(width, height, bucket)
    return Crop(bucket, round(left, 1), round(top, 1), round(kept_width, 1), round(kept_height, 1))


def summary(
    warnings_by_picture: Iterable[list[PictureWarning]], unreadable: int
) -> list[WarningCount]:
    """Count pictures by warning, worst first; only what occurs."""
    counts = Counter(warning.code for warnings in warnings_by_picture for warning in warnings)
    counts["unreadable"] = unreadable
    return [
        {"code": code, "title": title, "count": counts[code]}
        for code, title in TITLES.items()
        if counts[code]
    ]


# --- The checks -----------------------------------------------------------------------------------


def _check_caption(picture: CheckedPicture) -> PictureWarning | None:
    if picture.caption:
        return None
    return PictureWarning("no_caption", "It has no caption.")


def _check_tokens(picture: CheckedPicture, settings: CheckSettings) -> PictureWarning | None:
    most = settings.max_token_length
    if picture.tokens is None or picture.tokens <= most:
        return None
    return PictureWarning(
        "long_caption", f"The caption has {picture.tokens} tokens; training reads the first {most}."
    )


def _check_trigger_word(picture: CheckedPicture, settings: CheckSettings) -> PictureWarning | None:
    word = settings.trigger_word
    if not word or not picture.caption:
        return None
    if all(contains_word(line, word) for line in picture.caption.split("\n")):
        return None
    return PictureWarning(
        "no_trigger", f"The caption lacks the trigger word {word}; training puts it in front."
    )


def _check_other_caption(picture: CheckedPicture, settings: CheckSettings) -> PictureWarning | None:
    name = picture.other_caption
    if not name:
        return None
    if name.endswith(settings.caption_extension):
        which = "says something else and counts, as Caption file says, while the .txt is shown here"
    else:
        which = "says something else; the .txt counts"
    return PictureWarning("two_captions", f"{name} {which}. Delete the one that is wrong.")


def _check_loras(picture: CheckedPicture) -> PictureWarning | None:
    found = loras_in(picture.caption)
    if not found:
        return None
    return PictureWarning(
        "lora_in_caption",
        f"{found[0]} belongs in a prompt: in a caption it calls no LoRA, it is learned as words.",
    )


def _check_duplicates(picture: CheckedPicture) -> PictureWarning | None:
    names = picture.near_duplicates
    if not names:
        return None
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return PictureWarning(
        "near_duplicate", f"It looks nearly the same as {', '.join(names[:2])}{more}."
    )


def _check_sharing(picture: CheckedPicture) -> PictureWarning | None:
    names = picture.sharing_caption
    if not names:
        return None
    return PictureWarning(
        "shared_caption",
        f"It shares its caption file with {', '.join(names[:2])}; rename one to caption them"
        " apart.",
    )


def _check_size(picture: CheckedPicture) -> PictureWarning | None:
    enlarged = picture.crop.bucket.width / picture.crop.width
    if enlarged < MOST_ENLARGED:
        return None
    return PictureWarning(
        "small",
        f"{picture.width} × {picture.height} is smaller than the training size; it is enlarged"
        f" {enlarged:.1f} times and gets blurred.",
    )


def _check_shape(picture: CheckedPicture) -> PictureWarning | None:
    width, height, crop = picture.width, picture.height, picture.crop
    cut = 1 - crop.width * crop.height / (width * height)
    if cut > MOST_CUT:
        return PictureWarning(
            "odd_ratio",
            f"{cut:.0%} of it is cut off to fit {crop.bucket.width} × {crop.bucket.height}; the"
            " crop preview shows what is left.",
        )
    ratio = max(width, height) / min(width, height)
    if ratio > ODD_RATIO:
        return PictureWarning(
            "odd_ratio", f"One side is {ratio:.1f} times the other, which few pictures share."
        )
    return None
