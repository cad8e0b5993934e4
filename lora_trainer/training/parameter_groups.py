"""The optimizer's parameter groups: weights of the UNet and of the text encoder, LoRA+'s upper
halves (arXiv 2402.12354), and blocks that have a learning rate of their own.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from ..base.errors import Refused
from ..lora.adapter_layers import DORA_SCALE
from ..lora.blocks import PRESETS, block_of, read_block_rates

UNET, TEXT_ENCODER = "unet", "text_encoder"
# The halves that LoRA+ tells apart; other kinds of layers have none.
LOWER_HALF, UPPER_HALF = "lora_down.weight", "lora_up.weight"
Weight = TypeVar("Weight")
ParamGroup: TypeAlias = dict[str, Any]
"""A group as torch.optim.Optimizer has it: `params`, `lr`, and values of the optimizer's own."""


@dataclasses.dataclass(frozen=True)
class RateChoice:
    """The settings: learning rates of both parts, LoRA+'s ratios (the text encoder's 0: the
    UNet's), and factors of blocks as they are written."""

    learning_rate: float
    text_encoder_lr: float
    loraplus_lr_ratio: float = 1.0
    loraplus_text_encoder_lr_ratio: float = 0.0
    block_learning_rates: str = ""

    def rates(self) -> dict[str, float]:
        """Return the learning rates by part."""
        return {UNET: self.learning_rate, TEXT_ENCODER: self.text_encoder_lr}

    def ratios(self) -> dict[str, float]:
        """Return how much faster the upper halves learn, by part."""
        text = self.loraplus_text_encoder_lr_ratio or self.loraplus_lr_ratio
        return {UNET: self.loraplus_lr_ratio, TEXT_ENCODER: text}


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights with the same learning rate: `factor` times that of their part. DoRA's magnitudes do
    not decay: towards zero they would take away what the base model knows.
    """

    part: str
    factor: float = 1.0
    decays: bool = True

    @property
    def name(self) -> str:
        factor = f" x{self.factor:g}" if self.factor != 1 else ""
        return self.part + factor + ("" if self.decays else " magnitudes")


def groups_of(
    weights: Mapping[str, Mapping[str, Weight]], choice: RateChoice, *, levels: int
) -> dict[Group, list[Weight]]:
    """Sort the weights of layers, by path and by the name in the file, into groups. Those with a
    learning rate of 0 come last; of each part the group without a factor comes first.

    `levels` is how many the model's UNet has. Raises `Refused` for factors of blocks that such a
    model lacks.
    """
    blocks = read_block_rates(choice.block_learning_rates, levels)
    groups: dict[Group, list[Weight]] = {}
    for path, layer_weights in weights.items():
        part = UNET if path.startswith("unet.") else TEXT_ENCODER
        block = block_of(path.removeprefix("unet.")) if part == UNET else None
        factor = blocks.get(block, 1.0) if block else 1.0
        for name, weight in layer_weights.items():
            ratio = choice.ratios()[part] if name == UPPER_HALF else 1.0
            group = Group(part, factor * ratio, decays=name != DORA_SCALE)
            groups.setdefault(group, []).append(weight)
    parts = list(dict.fromkeys(group.part for group in groups))

    def position(group: Group) -> tuple[bool, int, bool]:
        return group.factor == 0, parts.index(group.part), group != Group(group.part)

    return {group: groups[group] for group in sorted(groups, key=position)}


def groups_without_model(
    parts: Iterable[str], choice: RateChoice, *, has_halves: bool
) -> list[Group]:
    """Return the groups that there may be, as far as the settings say; `has_halves`: the layers
    have the halves of LoRA+.
    """
    factors = {UNET: {1.0: None}, TEXT_ENCODER: {1.0: None}}
    for levels in PRESETS:  # what fits neither is refused once the model is known
        with contextlib.suppress(Refused):
            blocks = read_block_rates(choice.block_learning_rates, levels)
            factors[UNET] |= dict.fromkeys(blocks.values())
    return [
        Group(part, factor * ratio)
        for part in parts
        for factor in factors[part]
        for ratio in dict.fromkeys((1.0, choice.ratios()[part] if has_halves else 1.0))
    ]


def rates_of(groups: Iterable[Group], choice: RateChoice) -> dict[str, float]:
    """Return the highest learning rate of each group by its name."""
    return {group.name: choice.rates()[group.part] * group.factor for group in groups}


def own_settings(groups: Iterable[Group]) -> dict[str, dict[str, float]]:
    """Return by name the settings of a group besides its rate; groups with none are left out."""
    settings = {}
    for group in groups:
        if group != Group(group.part):
            settings[group.name] = {"factor": group.factor}
            if not group.decays:
                settings[group.name]["weight_decay"] = 0.0
    return settings
