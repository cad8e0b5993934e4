"""The settings as the steps take them: plain values for one purpose each; and those that contradict
each other.
"""

import dataclasses
import re
from typing import Any

from ..base.errors import Refused
from ..dataset.caption_augmentation import CaptionAugmentation
from ..lora.adapter_layers import AdapterSpec
from ..lora.target_layers import LayerSettings
from ..settings.config import TrainConfig
from ..training.parameter_groups import RateChoice

MOST_RESOLUTIONS = 8


def layer_choice(config: TrainConfig) -> LayerSettings:
    """Return which layers are to learn, with what rank and alpha."""
    return _filled(
        LayerSettings,
        config,
        targets="lora_targets",
        rank="lora_rank",
        alpha="alpha",
        blocks="lora_blocks",
        block_rates="block_learning_rates",
        unet="train_unet",
        text_encoder="train_text_encoder",
    )


def form_of(config: TrainConfig) -> AdapterSpec:
    """Return what kind of adapter is built into each layer."""
    return _filled(AdapterSpec, config, kind="lora_type", dropout="lora_dropout")


def rate_choice(config: TrainConfig) -> RateChoice:
    """Return which weights learn how fast."""
    return _filled(RateChoice, config)


def _filled(made: type, config: TrainConfig, **called: str) -> Any:
    """Fill a dataclass from the settings of the same names, or as they are `called`; what is no
    setting keeps its default.
    """
    names = {field.name: called.get(field.name, field.name) for field in dataclasses.fields(made)}
    return made(
        **{
            name: getattr(config, setting)
            for name, setting in names.items()
            if hasattr(config, setting)
        }
    )


def resolutions_of(config: TrainConfig) -> list[int]:
    """Return every resolution that pictures are learned in, in pixels, the main one first. Raises
    `Refused`.
    """
    field = next(
        field for field in dataclasses.fields(TrainConfig) if field.name == "resolution"
    ).metadata
    found = [config.resolution]
    for part in filter(None, re.split(r"[,;\s]+", config.extra_resolutions)):
        side = int(part) if re.fullmatch(r"[0-9]{1,5}", part) else 0
        if not field["minimum"] <= side <= field["maximum"]:
            raise Refused(
                f"More resolutions: {part[:40]!r} is not a number of pixels from {field['minimum']}"
                f" to {field['maximum']}. Write them as 768, 1024.",
                field="extra_resolutions",
                code="bad_value",
            )
        found.append(side)
    if len(set(found)) > MOST_RESOLUTIONS:
        raise Refused(
            f"More resolutions: {len(set(found))} are too many; at most {MOST_RESOLUTIONS}.",
            field="extra_resolutions",
            code="bad_value",
        )
    return list(dict.fromkeys(found))


def variation_of(config: TrainConfig) -> CaptionAugmentation:
    """Return how captions vary while training."""
    return CaptionAugmentation(
        config.shuffle_caption,
        config.keep_tokens,
        config.keep_tokens_separator,
        config.caption_dropout_rate,
        config.caption_tag_dropout_rate,
        config.trigger_only_rate,
        config.trigger_word,
        alternatives=config.caption_lines == "alternatives",
        wildcards=config.caption_wildcards,
    )


def check_choices(config: TrainConfig) -> None:
    """Raise `Refused` for the first settings that contradict each other."""
    resolutions = resolutions_of(config)
    lowest, highest = min(resolutions), max(resolutions)
    contradictions = [
        (
            config.min_timestep >= config.max_timestep,
            "min_timestep",
            (
                f"Training from timestep {config.min_timestep} to {config.max_timestep} leaves"
                " none. From must be lower than to."
            ),
        ),
        (
            not (config.train_unet or config.train_text_encoder),
            "train_unet",
            (
                "Neither the UNet nor the text encoder is to learn, so nothing would. Switch one of"
                " them on."
            ),
        ),
        (
            config.enable_bucket and not config.bucket_no_upscale and config.bucket_min > lowest,
            "bucket_min",
            (
                f"The shortest side, {config.bucket_min} px, is longer than the resolution,"
                f" {lowest} px. Lower it, or set it to 0."
            ),
        ),
        (
            config.enable_bucket
            and not config.bucket_no_upscale
            and 0 < config.bucket_max < highest,
            "bucket_max",
            (
                f"The longest side, {config.bucket_max} px, is shorter than the resolution,"
                f" {highest} px. Raise it, or set it to 0."
            ),
        ),
        (
            config.zero_terminal_snr == "on" and config.prediction_type == "epsilon",
            "zero_terminal_snr",
            (
                "Zero terminal SNR: a model that predicts noise learns nothing from pure noise. Set"
                " it to off, or The model predicts to v_prediction."
            ),
        ),
        (
            config.lora_type == "lokr" and config.lokr_factor == 0,
            "lokr_factor",
            "LoKr factor: 0 is none. Use -1 for as evenly as possible, or 2 and more.",
        ),
        (
            config.lora_type != "lora"
            and not config.init_lora
            and set(rate_choice(config).ratios().values()) != {1.0},
            "loraplus_lr_ratio",
            (
                f"LoRA+ is about the two halves of a LoRA; a {config.lora_type} has none. Set its"
                " ratios to 1 and 0, or Kind to lora."
            ),
        ),
        (
            config.optimizer == "adafactor"
            and re.search(r"(?i)relative_step\s*=\s*true", config.optimizer_args)
            and (
                config.block_learning_rates or set(rate_choice(config).ratios().values()) != {1.0}
            ),
            "optimizer_args",
            (
                "With relative_step Adafactor finds one learning rate for everything: set it to"
                " False, or take no LoRA+ ratio and no Learning rates of blocks."
            ),
        ),
        (
            config.trigger_only_rate > 0 and not config.trigger_word,
            "trigger_only_rate",
            (
                "Captions are to be the trigger word alone at times, and there is none. Give a"
                " trigger word, or set the share to 0."
            ),
        ),
        (
            config.caption_dropout_rate + config.trigger_only_rate > 1,
            "caption_dropout_rate",
            (
                f"Captions are left out {config.caption_dropout_rate:.0%} of the times and the"
                f" trigger word alone {config.trigger_only_rate:.0%}: more than all. Lower one of"
                " them."
            ),
        ),
    ]
    for wrong, field, sentence in contradictions:
        if wrong:
            raise Refused(sentence, field=field, code="contradiction")
