"""What the settings of a run say together: its resolutions, and which settings contradict each
other. Values of single settings were checked when they were read (Setting.read).
"""

import re
from collections.abc import Callable

from ..base.errors import ErrorCode, Refused
from .config import TrainConfig, setting_of
from .optimizer_arguments import split_arguments

MOST_RESOLUTIONS = 8


def resolutions_of(config: TrainConfig) -> list[int]:
    """Return every resolution that pictures are learned in, in pixels, the main one first. Raises
    `Refused`.
    """
    parts = filter(None, re.split(r"[,;\s]+", config.extra_resolutions))
    found = {config.resolution: None, **{_extra_resolution(part): None for part in parts}}
    if len(found) > MOST_RESOLUTIONS:
        raise Refused(
            f"More resolutions: {len(found)} are too many; at most {MOST_RESOLUTIONS}.",
            field="extra_resolutions",
            code=ErrorCode.BAD_VALUE,
        )
    return list(found)


def _extra_resolution(part: str) -> int:
    setting = setting_of("resolution")
    if re.fullmatch(r"[0-9]{1,5}", part) and setting.allows(int(part)):
        return int(part)
    raise Refused(
        f"More resolutions: {part[:40]!r} is not a number of pixels from {setting.minimum}"
        f" to {setting.maximum}. Write them as 768, 1024.",
        field="extra_resolutions",
        code=ErrorCode.BAD_VALUE,
    )


def check_contradictions(config: TrainConfig) -> None:
    """Raise `Refused` for resolutions that cannot be, and (code "contradiction") for the first
    settings that contradict each other.
    """
    resolutions_of(config)
    for check in _CHECKS:
        check(config)


def _contradiction(field: str, sentence: str) -> Refused:
    return Refused(sentence, field=field, code=ErrorCode.CONTRADICTION)


def _check_timesteps(config: TrainConfig) -> None:
    if config.min_timestep >= config.max_timestep:
        raise _contradiction(
            "min_timestep",
            f"Training from timestep {config.min_timestep} to {config.max_timestep} leaves"
            " none. From must be lower than to.",
        )


def _check_something_learns(config: TrainConfig) -> None:
    if config.init_lora:  # its layers learn, whatever the switches say
        return
    if not (config.train_unet or config.train_text_encoder):
        raise _contradiction(
            "train_unet",
            "Neither the UNet nor the text encoder is to learn, so nothing would. Switch one of"
            " them on.",
        )


def _check_bucket_sides(config: TrainConfig) -> None:
    if not config.enable_bucket or config.bucket_no_upscale:
        return
    resolutions = resolutions_of(config)
    lowest, highest = min(resolutions), max(resolutions)
    if config.bucket_min > lowest:
        raise _contradiction(
            "bucket_min",
            f"The shortest side, {config.bucket_min} px, is longer than the resolution,"
            f" {lowest} px. Lower it, or set it to 0.",
        )
    if 0 < config.bucket_max < highest:
        raise _contradiction(
            "bucket_max",
            f"The longest side, {config.bucket_max} px, is shorter than the resolution,"
            f" {highest} px. Raise it, or set it to 0.",
        )


def _check_zero_terminal_snr(config: TrainConfig) -> None:
    if config.zero_terminal_snr == "on" and config.prediction_type == "epsilon":
        raise _contradiction(
            "zero_terminal_snr",
            "Zero terminal SNR: a model that predicts noise learns nothing from pure noise. Set"
            " it to off, or The model predicts to v_prediction.",
        )


def _check_lokr_factor(config: TrainConfig) -> None:
    if config.lora_type == "lokr" and config.lokr_factor == 0 and not config.init_lora:
        raise _contradiction(
            "lokr_factor",
            "LoKr factor: 0 is none. Use -1 for as evenly as possible, or 2 and more.",
        )


def _check_loraplus_has_halves(config: TrainConfig) -> None:
    if config.lora_type != "lora" and not config.init_lora and _uses_loraplus(config):
        raise _contradiction(
            "loraplus_lr_ratio",
            f"LoRA+ is about the two halves of a LoRA; a {config.lora_type} has none. Set its"
            " ratios to 1 and 0, or Kind to lora.",
        )


def _check_relative_step(config: TrainConfig) -> None:
    if config.optimizer != "adafactor" or not _has_relative_step(config.optimizer_args):
        return
    if config.block_learning_rates or _uses_loraplus(config):
        raise _contradiction(
            "optimizer_args",
            "With relative_step Adafactor finds one learning rate for everything: set it to"
            " False, or take no LoRA+ ratio and no Learning rates of blocks.",
        )


def _has_relative_step(optimizer_args: str) -> bool:
    try:
        arguments = dict(split_arguments(optimizer_args))
    except ValueError:  # which the optimizer refuses
        return False
    return arguments.get("relative_step", "").lower() == "true"


def _uses_loraplus(config: TrainConfig) -> bool:
    """Return whether upper halves learn at another rate than lower ones (arXiv 2402.12354)."""
    text_encoder_ratio = config.loraplus_text_encoder_lr_ratio or config.loraplus_lr_ratio
    return (config.loraplus_lr_ratio, text_encoder_ratio) != (1.0, 1.0)


def _check_trigger_word(config: TrainConfig) -> None:
    if config.trigger_only_rate > 0 and not config.trigger_word:
        raise _contradiction(
            "trigger_only_rate",
            "Captions are to be the trigger word alone at times, and there is none. Give a"
            " trigger word, or set the share to 0.",
        )


def _check_caption_shares(config: TrainConfig) -> None:
    if config.caption_dropout_rate + config.trigger_only_rate > 1:
        raise _contradiction(
            "caption_dropout_rate",
            f"Captions are left out {config.caption_dropout_rate:.0%} of the times and the"
            f" trigger word alone {config.trigger_only_rate:.0%}: more than all. Lower one of"
            " them.",
        )


_CHECKS: tuple[Callable[[TrainConfig], None], ...] = (
    _check_timesteps,
    _check_something_learns,
    _check_bucket_sides,
    _check_zero_terminal_snr,
    _check_lokr_factor,
    _check_loraplus_has_halves,
    _check_relative_step,
    _check_trigger_word,
    _check_caption_shares,
)
