"""Which parts of the model are trained and how fast, as far as that is known without the model."""

import contextlib

from ..base.errors import Refused
from ..lora.blocks import BASE, PRESETS, BlockRank, read_blocks
from ..lora.load import LoraFile
from ..settings.config import TrainConfig


def learning_rates_by_part(config: TrainConfig, init_lora: LoraFile | None) -> dict[str, float]:
    """Return the learning rates of what is trained: of "unet", "text_encoder", or both.

    The layers of a LoRA that is trained further decide; without one, the switches and the blocks.
    """
    if init_lora:
        trains_unet = init_lora.text_encoder_layers < len(init_lora.ranks)
        trains_text_encoder = init_lora.text_encoder_layers > 0
    else:
        blocks = _blocks(config.lora_blocks)
        base = blocks.pop(BASE, BlockRank())
        has_unet_blocks = not blocks or any(block.rank != 0 for block in blocks.values())
        trains_unet = config.train_unet and has_unet_blocks
        trains_text_encoder = config.train_text_encoder and base.rank != 0
    rates = {}
    if trains_unet:
        rates["unet"] = config.learning_rate
    if trains_text_encoder:
        rates["text_encoder"] = config.text_encoder_lr
    return rates


def _blocks(text: str) -> dict[str, BlockRank]:
    """Read a list of blocks for the first model family that has them all.

    Empty when none has: that is refused once the model is known.
    """
    for levels in PRESETS:
        with contextlib.suppress(Refused):
            return read_blocks(text, levels)
    return {}
