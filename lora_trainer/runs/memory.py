"""How much memory and disk a run will take, estimated before its first step."""

import math
from collections.abc import Iterable
from typing import TypedDict

import torch

from ..dataset.masks import is_opaque
from ..dataset.pixels import placement
from ..dataset.sample import Sample
from ..lora.adapters import count_parameters
from ..lora.load import LoraFile
from ..lora.target_layers import assign_ranks
from ..settings.config import TrainConfig
from ..training.encoded_dataset import COLOR_VARIANTS
from .step_options import adapter_spec, caption_augmentation, layer_settings
from .trained_parts import learning_rates_by_part

CAPTION_BYTES = 77 * 2048 * 4  # of 75 tokens, with SDXL in float32; SD1 takes a third
WORDS_AT_ONCE, TOKENS_AT_ONCE = 55, 75  # so many words of English make so many tokens
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw8bit": 2,
    "lion": 4,
    "adafactor": 1,
    "prodigy": 16,
    "dadaptation": 12,
    "schedulefree": 8,
}  # for each parameter, about


class Estimate(TypedDict):
    """What a run will take; None is not known while no model is loaded.

    `estimated_memory_bytes` are those of the trained parameters and their optimizer,
    `cache_bytes` those of the encoded samples in main memory.
    """

    trainable_parameters: int | None
    estimated_memory_bytes: int | None
    file_bytes: int | None
    cache_bytes: int


def estimate(
    config: TrainConfig,
    samples: Iterable[Sample],
    parts: torch.nn.ModuleDict | None,
    *,
    init_lora: LoraFile | None = None,
) -> Estimate:
    """Estimate what a run takes; `parts` are those of the model, if one is loaded.

    Weight and gradient are fp32, and so is most of what optimizers keep. Raises `Refused` for
    blocks that the model lacks.
    """
    cache = cache_bytes(config, samples, init_lora=init_lora)
    if parts is None:
        return Estimate(
            trainable_parameters=None,
            estimated_memory_bytes=None,
            file_bytes=None,
            cache_bytes=cache,
        )
    if init_lora is None:
        shapes = assign_ranks(parts, layer_settings(config))
        parameters = count_parameters(parts, shapes, adapter_spec(config))
    else:
        parameters = init_lora.parameters
    each = 8 + OPTIMIZER_BYTES.get(config.optimizer, 8) + (4 if config.ema_decay > 0 else 0)
    return Estimate(
        trainable_parameters=parameters,
        estimated_memory_bytes=each * parameters,
        file_bytes=parameters * (4 if config.save_precision == "fp32" else 2),
        cache_bytes=cache,
    )


def cache_bytes(
    config: TrainConfig, samples: Iterable[Sample], *, init_lora: LoraFile | None = None
) -> int:
    """Estimate what `training.encoded_dataset` keeps in main memory.

    That is float32 latents and masks in all their variants, and the captions where they are encoded
    once.
    """
    samples = list(samples)
    taken = sum(_latents_bytes(config, sample) for sample in samples)
    trains_text_encoder = "text_encoder" in learning_rates_by_part(config, init_lora)
    if caption_augmentation(config).varies or trains_text_encoder:
        return taken
    captions = {sample.caption for sample in samples}
    return taken + CAPTION_BYTES * sum(_chunks(caption) for caption in captions)


def _latents_bytes(config: TrainConfig, sample: Sample) -> int:
    picture = sample.picture
    varies = sample.role != "validation"
    whole = config.random_crop and varies
    place = placement(picture.width, picture.height, sample.bucket, whole=whole)
    masked_by_alpha = config.masked_loss == "alpha" and not is_opaque(picture)
    channels = 5 if sample.mask or masked_by_alpha else 4
    variants = 1
    if varies and config.color_jitter:
        variants *= COLOR_VARIANTS
    if varies and config.mirror:
        variants *= 2
    return 4 * channels * (place.width // 8) * (place.height // 8) * variants


def _chunks(caption: str) -> int:
    """Estimate how many times 75 tokens a caption has."""
    return max(1, math.ceil(len(caption.split()) / WORDS_AT_ONCE))
