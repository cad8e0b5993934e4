"""What a person should know of a run before it begins, in sentences. What would make it fail is
refused elsewhere.
"""

from collections import Counter
from collections.abc import Sequence

from ..base.contracts import ModelStatus
from ..dataset.buckets import Bucket
from ..dataset.caption_augmentation import has_choices
from ..dataset.captions import loras_in
from ..dataset.scan import TRANSPARENT, Picture, Problem
from ..dataset.selection import Selection
from ..settings.advice import STYLE_PICTURES, SUBJECT_PICTURES, in_words
from ..settings.config import TrainConfig
from ..settings.remedies import Remark, Remedy, set_to
from ..settings.rules import resolutions_of

FEW_PICTURES, FEW_MIRRORED, MOST_SAID = 6, 4, 5
MOST_STEPS_PER_PICTURE = 300
SMALLEST_SHARE = 0.75  # of the side that a checkpoint was made for
SIZES = {"sdxl": 1024}  # of families, where the checkpoint does not say it
FAMILIES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
WORDS_PER_TOKEN = 55 / 75  # of captions in English; lists of tags have fewer


def remarks_on(
    config: TrainConfig, selection: Selection, captions: list[str], *, total_steps: int
) -> list[str]:
    """Return the remarks on a run, those on its files first."""
    by_role = {
        role: [
            (picture, caption)
            for picture, caption, of in zip(
                selection.pictures, captions, selection.roles, strict=True
            )
            if of == role
        ]
        for role in ("train", "regularisation", "validation")
    }
    yours = by_role["train"] + by_role["validation"]
    return (
        _unusable(selection.problems)
        + _few(config, len(by_role["train"]))
        + _bare(yours)
        + _captions(config, [picture for picture, _ in yours])
        + _long(config, yours + by_role["regularisation"])
        + _one_tag_each(config, yours)
        + _small(config, [picture for picture, _ in yours])
        + selection.remarks
        + _regularisation(config, by_role["regularisation"])
        + _without_effect(config, total_steps)
        + _of_single_pictures(config, selection.pictures)
    )


def remarks_on_batches(
    config: TrainConfig,
    buckets: Sequence[Bucket],
    repeats: Sequence[int],
    *,
    pictures: int,
    total_steps: int,
    steps_per_epoch: int,
) -> list[str]:
    """Return the remarks on how a run's `pictures` to learn from are put into steps. `buckets` and
    `repeats` have an entry for each, and for those that are not learned from, with 0 repeats."""
    most = MOST_STEPS_PER_PICTURE * pictures
    return _large_batch(config, buckets, repeats) + _by_heart(
        config, total_steps, steps_per_epoch, most=most
    )


def remarks_on_model(config: TrainConfig, model: ModelStatus) -> list[str]:
    """Return the remarks on settings that do not suit the checkpoint which is loaded."""
    size = model.size_px or SIZES.get(model.family, 0)
    if not model.trainable or config.resolution >= SMALLEST_SHARE * size:
        return []
    return [
        Remark(
            f"This {FAMILIES.get(model.family, model.family)} checkpoint was made for pictures of"
            f" {size} px; what it learns from {config.resolution} px is coarse and cut off.",
            set_to("resolution", size),
        )
    ]


def _unusable(problems: list[Problem]) -> list[str]:
    found = [problem.reason for problem in problems[:MOST_SAID]]
    return found + [f"{len(problems) - MOST_SAID} more files cannot be used."] * (
        len(problems) > MOST_SAID
    )


def _large_batch(
    config: TrainConfig, buckets: Sequence[Bucket], repeats: Sequence[int]
) -> list[str]:
    """Say so where fewer than half of the pictures are in buckets that fill a batch."""
    held: Counter[Bucket] = Counter()
    for bucket, count in zip(buckets, repeats, strict=True):
        held[bucket] += count
    shown = held.total()
    filling = {
        size: sum(count for count in held.values() if count >= size)
        for size in range(1, config.batch_size + 1)
    }
    if 2 * filling[config.batch_size] >= shown:
        return []
    fitting = max(size for size, count in filling.items() if 2 * count >= shown)
    squares = Remedy("Crop all to squares", {"enable_bucket": False})
    return [
        Remark(
            f"Batch size {config.batch_size}: {shown - filling[config.batch_size]} of {shown}"
            " pictures (repeats included) are in buckets that hold fewer, so their batches are"
            " smaller.",
            set_to("batch_size", fitting),
            *([squares] if config.enable_bucket and shown >= config.batch_size else []),
        )
    ]


def _by_heart(
    config: TrainConfig, total_steps: int, steps_per_epoch: int, *, most: int
) -> list[str]:
    if total_steps <= most:
        return []
    pictures = most // MOST_STEPS_PER_PICTURE
    epochs = 0 if config.max_train_steps else most // steps_per_epoch
    return [
        Remark(
            f"{total_steps:,} steps for {pictures} picture{'s' * (pictures > 1)} are more than "
            f"{MOST_STEPS_PER_PICTURE} each: long before the end they are learned by heart.",
            set_to("epochs", epochs) if epochs else set_to("max_train_steps", most),
        )
    ]


def _few(config: TrainConfig, count: int) -> list[str]:
    if count >= (FEW_MIRRORED if config.mirror else FEW_PICTURES):
        return []
    mirrored = (
        [Remedy("Learn them mirrored, too", {"mirror": True})] if count >= FEW_MIRRORED else []
    )
    return [
        Remark(
            f"Only {count} picture{'s' * (count > 1)}: the LoRA may learn"
            f" {'it' if count == 1 else 'them'} by heart. {in_words(SUBJECT_PICTURES)} work best,"
            f" for a style {in_words(STYLE_PICTURES)}.",
            *mirrored,
        )
    ]


def _bare(pictures: list[tuple[Picture, str]]) -> list[str]:
    bare = [picture for picture, caption in pictures if not caption]
    return (
        [
            f"{len(bare)} of {len(pictures)} pictures have no caption and there is no trigger word:"
            " nothing will call what they teach."
        ]
        if bare
        else []
    )


def _captions(config: TrainConfig, pictures: list[Picture]) -> list[str]:
    """Say what is done with captions that can be read in more than one way."""
    several = [picture for picture in pictures if "\n" in picture.caption]
    choices = [picture for picture in pictures if has_choices(picture.caption)]
    rivals = [picture for picture in pictures if picture.other_caption]
    loras = [picture for picture in pictures if loras_in(picture.caption)]
    lines = {
        "join": "they are joined; Several lines can make them alternatives",
        "first": "only the first counts",
        "alternatives": "one is drawn each time",
    }
    drawn = (
        "one of them is drawn each time"
        if config.caption_wildcards
        else "read as it is written; Wildcards would draw one each time"
    )
    said = [
        (several, "{which} {has} several lines: " + lines[config.caption_lines] + "."),
        (choices, "{which} {has} {{this|that}}: " + drawn + "."),
        (
            rivals,
            "{which} {has} a .txt and a .caption that differ: the "
            + config.caption_extension
            + " counts.",
        ),
        (
            loras,
            (
                "{which} {has} a LoRA's tag in the caption, which calls none there and is learned"
                " as words. Take it out."
            ),
        ),
    ]
    found = [
        sentence.format(which=_which(those), has="has" if len(those) == 1 else "have")
        for those, sentence in said
        if those
    ]
    return found + [
        f"The trigger word holds {tag}: that belongs in a prompt. Take it out."
        for tag in loras_in(config.trigger_word)
    ]


def _which(pictures: list[Picture]) -> str:
    first = pictures[0].path.name
    return first if len(pictures) == 1 else f"{len(pictures)} pictures ({first}, …)"


def _long(config: TrainConfig, pictures: list[tuple[Picture, str]]) -> list[str]:
    most = round(config.max_token_length * WORDS_PER_TOKEN)
    words = [
        (picture, max(len(line.split()) for line in caption.split("\n")))
        for picture, caption in pictures
    ]
    long = [(picture, count) for picture, count in words if count > most]
    return (
        [
            f"The caption of {long[0][0].path.name} has {long[0][1]} words; only the first"
            f" {config.max_token_length} tokens, about {most} words, count."
        ]
        if long
        else []
    )


def _one_tag_each(config: TrainConfig, pictures: list[tuple[Picture, str]]) -> list[str]:
    """Tags stand between commas; sentences have nothing to shuffle."""
    varied = {
        name: type(value)()
        for name in ("shuffle_caption", "caption_tag_dropout_rate")
        if (value := getattr(config, name))
    }
    return (
        [
            Remark(
                "Tags are shuffled or left out, but no caption has more than one part: they stand"
                " between commas.",
                Remedy("Leave captions as they are", varied),
            )
        ]
        if varied and not any("," in picture.caption for picture, _ in pictures)
        else []
    )


def _small(config: TrainConfig, pictures: list[Picture]) -> list[str]:
    if config.bucket_no_upscale and config.enable_bucket:
        return []
    counts = {
        side: sum(picture.width * picture.height < 0.8 * side**2 for picture in pictures)
        for side in resolutions_of(config)
    }
    remedy = Remedy("Never enlarge", {"enable_bucket": True, "bucket_no_upscale": True})
    return [
        Remark(
            f"{count} pictures are smaller than {side}x{side} and will be enlarged, which blurs"
            " them.",
            remedy,
        )
        for side, count in counts.items()
        if count
    ]


def _regularisation(config: TrainConfig, pictures: list[tuple[Picture, str]]) -> list[str]:
    if not pictures:
        return []
    bare = [picture for picture, caption in pictures if not caption]
    found = (
        [
            f"{len(bare)} of {len(pictures)} regularisation pictures have no caption. Put them into"
            " a folder called 1_ and what they show, such as 1_cat."
        ]
        if bare
        else []
    )
    weightless = Remark(
        "The regularisation pictures' weight is 0: they take time and change nothing.",
        Remedy("Set their weight to 1", {"prior_loss_weight": 1.0}),
    )
    return found + [weightless] * (not config.prior_loss_weight)


def _without_effect(config: TrainConfig, total_steps: int) -> list[str]:
    checks = [
        (
            config.lr_warmup_steps >= total_steps,
            (
                f"The warm-up takes {config.lr_warmup_steps} steps and the run {total_steps}: the"
                " learning rate never gets to its full height."
            ),
            set_to("lr_warmup_steps", total_steps // 10),
        ),
        (
            total_steps // 2 < config.lr_warmup_steps < total_steps,
            (
                f"The warm-up takes {config.lr_warmup_steps} of {total_steps} steps: the learning"
                " rate is at its full height for the rest only."
            ),
            set_to("lr_warmup_steps", total_steps // 10),
        ),
        (
            (config.conv_rank or config.conv_alpha) and config.lora_targets != "all",
            "Rank and alpha of convolutions change nothing unless Layers is all.",
            set_to("lora_targets", "all"),
        ),
        (
            config.train_text_encoder and not config.text_encoder_lr,
            "The text encoder's learning rate is 0: it learns nothing.",
            Remedy("Do not train the text encoder", {"train_text_encoder": False}),
        ),
    ]
    return [Remark(sentence, remedy) for wrong, sentence, remedy in checks if wrong]


def _of_single_pictures(config: TrainConfig, pictures: list[Picture]) -> list[str]:
    """What scanning found; with masks from transparency, what is transparent is not learned and its
    colour is all the same.
    """
    known = {"no caption", TRANSPARENT} if config.masked_loss == "alpha" else {"no caption"}
    return [
        f"{picture.path.name}: {remark}."
        for picture in pictures
        for remark in picture.warnings
        if remark not in known
    ][:MOST_SAID]
