"""What a person should know of each picture before training on it, and what of it the trainer will
see. Pure functions.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable

from ..dataset.buckets import Bucket, assign_bucket, crop_of
from ..dataset.captions import CAPTION_ENDINGS, contains_word, loras_in

ENLARGED, MOST_CUT, ODD_RATIO = 1.05, 0.2, 2.0
TITLES = {
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
    """The settings that checks go by; as in TrainConfig."""

    resolution: int = 512
    bucket_step: int = 64
    enable_bucket: bool = True
    trigger_word: str = ""
    bucket_min: int = 0
    bucket_max: int = 0
    bucket_no_upscale: bool = False
    max_token_length: int = 225
    caption_lines: str = "join"
    caption_extension: str = CAPTION_ENDINGS[0]


@dataclasses.dataclass(frozen=True)
class Remark:
    code: str
    message: str


def remarks_on(  # noqa: PLR0913
    *,
    width: int,
    height: int,
    caption: str,
    tokens: int | None,
    duplicates: list[str],
    shared: list[str],
    crop: dict,
    wanted: CheckSettings,
    other: str = "",
) -> list[Remark]:
    """Say what is to be said of a picture, given its upright size in pixels, its tokens in
    training, the others that use its caption file, its `crop_for`, and the name of its `other`
    caption file that says something else.
    """
    return [
        remark
        for remark in (
            _caption(caption),
            _tokens(tokens, wanted.max_token_length),
            _trigger(caption, wanted.trigger_word),
            _other(other, wanted.caption_extension),
            _lora(caption),
            _duplicates(duplicates),
            _shared(shared),
            _size(width, height, crop),
            _shape(width, height, crop),
        )
        if remark
    ]


def bucket_for(width: int, height: int, wanted: CheckSettings) -> Bucket:
    """Return the bucket of a picture of this upright size."""
    return assign_bucket(
        width,
        height,
        resolution=wanted.resolution,
        step=min(wanted.bucket_step, wanted.resolution // 8 * 8),
        enable_bucket=wanted.enable_bucket,
        shortest=wanted.bucket_min,
        longest=wanted.bucket_max,
        no_upscale=wanted.bucket_no_upscale,
    )


def crop_for(width: int, height: int, wanted: CheckSettings) -> dict:
    """Return `{bucket: [width, height], left, top, width, height}`: what the trainer will see, in
    pixels of the upright picture.
    """
    bucket = bucket_for(width, height, wanted)
    left, top, kept_width, kept_height = crop_of(width, height, bucket)
    return {
        "bucket": [bucket.width, bucket.height],
        "left": round(left, 1),
        "top": round(top, 1),
        "width": round(kept_width, 1),
        "height": round(kept_height, 1),
    }


def summary(remarks: Iterable[list[Remark]], unreadable: int) -> list[dict]:
    """Count pictures by remark, worst first: `{code, title, count}`, only what occurs."""
    counts = Counter(remark.code for each in remarks for remark in each)
    counts["unreadable"] = unreadable
    return [
        {"code": code, "title": title, "count": counts[code]}
        for code, title in TITLES.items()
        if counts[code]
    ]


def _caption(caption: str) -> Remark | None:
    return None if caption else Remark("no_caption", "It has no caption.")


def _tokens(tokens: int | None, most: int) -> Remark | None:
    if tokens is None or tokens <= most:
        return None
    return Remark(
        "long_caption", f"The caption has {tokens} tokens; training reads the first {most}."
    )


def _other(name: str, counts: str) -> Remark | None:
    which = (
        "counts, as Caption file says, while the .txt is shown here"
        if name.endswith(counts)
        else "the .txt counts"
    )
    said = "says something else and" if name.endswith(counts) else "says something else;"
    return (
        Remark("two_captions", f"{name} {said} {which}. Delete the one that is wrong.")
        if name
        else None
    )


def _lora(caption: str) -> Remark | None:
    found = loras_in(caption)
    return (
        Remark(
            "lora_in_caption",
            f"{found[0]} belongs in a prompt: in a caption it calls no LoRA, it is learned as"
            " words.",
        )
        if found
        else None
    )


def _trigger(caption: str, trigger_word: str) -> Remark | None:
    if (
        not trigger_word
        or not caption
        or all(contains_word(line, trigger_word) for line in caption.split("\n"))
    ):
        return None
    return Remark(
        "no_trigger",
        f"The caption lacks the trigger word {trigger_word}; training puts it in front.",
    )


def _duplicates(duplicates: list[str]) -> Remark | None:
    if not duplicates:
        return None
    more = f" and {len(duplicates) - 2} more" if len(duplicates) > 2 else ""
    return Remark(
        "near_duplicate", f"It looks nearly the same as {', '.join(duplicates[:2])}{more}."
    )


def _shared(shared: list[str]) -> Remark | None:
    return (
        Remark(
            "shared_caption",
            f"It shares its caption file with {', '.join(shared[:2])}; rename one to caption them"
            " apart.",
        )
        if shared
        else None
    )


def _size(width: int, height: int, crop: dict) -> Remark | None:
    enlarged = crop["bucket"][0] / crop["width"]
    if enlarged < ENLARGED:
        return None
    return Remark(
        "small",
        f"{width} × {height} is smaller than the training size; it is enlarged {enlarged:.1f} times"
        " and gets blurred.",
    )


def _shape(width: int, height: int, crop: dict) -> Remark | None:
    ratio = max(width, height) / min(width, height)
    cut = 1 - crop["width"] * crop["height"] / (width * height)
    if cut > MOST_CUT:
        return Remark(
            "odd_ratio",
            f"{cut:.0%} of it is cut off to fit {crop['bucket'][0]} × {crop['bucket'][1]}; the crop"
            " preview shows what is left.",
        )
    return (
        Remark("odd_ratio", f"One side is {ratio:.1f} times the other, which few pictures share.")
        if ratio > ODD_RATIO
        else None
    )
