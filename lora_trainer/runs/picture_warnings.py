"""What a person should know of the pictures and captions of a run before it begins, as sentences.

Each function takes the run's samples in the main resolution, one for each picture.
"""

from collections.abc import Sequence

from ..dataset.caption_augmentation import has_choices
from ..dataset.captions import loras_in
from ..dataset.sample import TRANSPARENT, Sample
from ..dataset.scan import Problem
from ..settings.advice import STYLE_PICTURES, SUBJECT_PICTURES, in_words
from ..settings.config import TrainConfig
from ..settings.remedies import ActionableWarning, Remedy
from ..settings.rules import resolutions_of
from .memory import TOKENS_AT_ONCE, WORDS_AT_ONCE

FEW_PICTURES, FEW_MIRRORED, MOST_NAMED = 6, 4, 5
SMALL_AREA = 0.8  # of the resolution's square


def picture_warnings(
    config: TrainConfig, samples: Sequence[Sample], problems: Sequence[Problem]
) -> list[str]:
    """Return the warnings about files that cannot be used, and about the user's own pictures."""
    yours = [sample for sample in samples if sample.role != "regularisation"]
    training = [sample for sample in samples if sample.role == "train"]
    others = [sample for sample in samples if sample.role == "regularisation"]
    return [
        *_unusable(problems),
        *_few(config, len(training)),
        *_without_caption(yours),
        *_ambiguous_captions(config, yours),
        *_long_captions(config, yours + others),
        *_single_tags(config, yours),
        *_small(config, yours),
    ]


def regularisation_warnings(config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    """Return the warnings about regularisation pictures."""
    regularisation = [sample for sample in samples if sample.role == "regularisation"]
    if not regularisation:
        return []
    warnings: list[str] = []
    if bare := sum(not sample.caption for sample in regularisation):
        warnings.append(
            f"{bare} of {len(regularisation)} regularisation pictures have no caption. Put them"
            " into a folder called 1_ and what they show, such as 1_cat."
        )
    if not config.prior_loss_weight:
        warnings.append(
            ActionableWarning(
                "The regularisation pictures' weight is 0: they take time and change nothing.",
                Remedy("Set their weight to 1", {"prior_loss_weight": 1.0}),
            )
        )
    return warnings


def file_warnings(config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    """Return what scanning found about single pictures.

    With masks from transparency, transparent parts are not learned, so their colour is no matter.
    """
    warnings = []
    for picture in (sample.picture for sample in samples):
        found = picture.file_warnings
        if picture.has_alpha and config.masked_loss != "alpha":
            found = (*found, TRANSPARENT)
        warnings += [f"{picture.path.name}: {warning}." for warning in found]
    return warnings[:MOST_NAMED]


def _unusable(problems: Sequence[Problem]) -> list[str]:
    warnings = [problem.reason for problem in problems[:MOST_NAMED]]
    if len(problems) > MOST_NAMED:
        warnings.append(f"{len(problems) - MOST_NAMED} more files cannot be used.")
    return warnings


def _few(config: TrainConfig, count: int) -> list[str]:
    if count >= (FEW_MIRRORED if config.mirror else FEW_PICTURES):
        return []
    remedies = []
    if count >= FEW_MIRRORED:
        remedies.append(Remedy("Learn them mirrored, too", {"mirror": True}))
    pictures, them = ("1 picture", "it") if count == 1 else (f"{count} pictures", "them")
    return [
        ActionableWarning(
            f"Only {pictures}: the LoRA may learn {them} by heart. {in_words(SUBJECT_PICTURES)}"
            f" work best, for a style {in_words(STYLE_PICTURES)}.",
            *remedies,
        )
    ]


def _without_caption(samples: Sequence[Sample]) -> list[str]:
    bare = sum(not sample.caption for sample in samples)
    if not bare:
        return []
    return [
        f"{bare} of {len(samples)} pictures have no caption and there is no trigger word: nothing"
        " will call what they teach."
    ]


def _ambiguous_captions(config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    """Say how captions are read that could be read in more than one way."""
    several_lines = [sample for sample in samples if "\n" in sample.picture.caption]
    choices = [sample for sample in samples if has_choices(sample.picture.caption)]
    rivals = [sample for sample in samples if sample.picture.other_caption]
    loras = [sample for sample in samples if loras_in(sample.picture.caption)]
    warnings = []
    if several_lines:
        use = {
            "join": "they are joined; Several lines can make them alternatives",
            "first": "only the first counts",
            "alternatives": "one is drawn each time",
        }[config.caption_lines]
        warnings.append(f"{_have(several_lines)} several lines: {use}.")
    if choices:
        use = "read as it is written; Wildcards would draw one each time"
        if config.caption_wildcards:
            use = "one of them is drawn each time"
        warnings.append(f"{_have(choices)} {{this|that}}: {use}.")
    if rivals:
        warnings.append(
            f"{_have(rivals)} a .txt and a .caption that differ: the {config.caption_extension}"
            " counts."
        )
    if loras:
        warnings.append(
            f"{_have(loras)} a LoRA's tag in the caption, which calls none there and is learned as"
            " words. Take it out."
        )
    for tag in loras_in(config.trigger_word):
        warnings.append(f"The trigger word holds {tag}: that belongs in a prompt. Take it out.")
    return warnings


def _have(samples: Sequence[Sample]) -> str:
    first = samples[0].picture.path.name
    if len(samples) == 1:
        return f"{first} has"
    return f"{len(samples)} pictures ({first}, …) have"


def _long_captions(config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    """Name the first picture whose caption is cut off; lists of tags have fewer words."""
    most = round(config.max_token_length * (WORDS_AT_ONCE / TOKENS_AT_ONCE))
    for sample in samples:
        words = max(len(line.split()) for line in sample.caption.split("\n"))
        if words > most:
            return [
                f"The caption of {sample.picture.path.name} has {words} words; only the first"
                f" {config.max_token_length} tokens, about {most} words, count."
            ]
    return []


def _single_tags(config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    """Say so where tags are to vary and captions have none; they stand between commas."""
    unvaried: dict[str, bool | float] = {}
    if config.shuffle_caption:
        unvaried["shuffle_caption"] = False
    if config.caption_tag_dropout_rate:
        unvaried["caption_tag_dropout_rate"] = 0.0
    if not unvaried or any("," in sample.picture.caption for sample in samples):
        return []
    return [
        ActionableWarning(
            "Tags are shuffled or left out, but no caption has more than one part: they stand"
            " between commas.",
            Remedy("Leave captions as they are", unvaried),
        )
    ]


def _small(config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    if config.bucket_no_upscale and config.enable_bucket:
        return []
    remedy = Remedy("Never enlarge", {"enable_bucket": True, "bucket_no_upscale": True})
    areas = [sample.picture.width * sample.picture.height for sample in samples]
    warnings: list[str] = []
    for side in resolutions_of(config):
        if count := sum(area < SMALL_AREA * side**2 for area in areas):
            sentence = (
                f"{count} pictures are smaller than {side}x{side} and will be enlarged, which blurs"
                " them."
            )
            warnings.append(ActionableWarning(sentence, remedy))
    return warnings
