"""Which weights learn at which rate: those of the UNet and of the text encoder, LoRA+'s upper
halves (arXiv 2402.12354), and blocks that have a rate of their own. The optimizer gets a group for
each.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..base.errors import Refused
from ..lora.adapter_layers import DORA_SCALE
from ..lora.blocks import PRESETS, block_of, read_block_rates

UNET, TEXT_ENCODER = "unet", "text_encoder"
LOWER_HALF, UPPER_HALF = (
    "lora_down.weight",
    "lora_up.weight",
)  # LoRA+ is about these; other kinds have none
Weight = TypeVar("Weight")


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
        return {UNET: self.learning_rate, TEXT_ENCODER: self.text_encoder_lr}

    def ratios(self) -> dict[str, float]:
        """Return how much faster the upper halves learn, by part."""
        text = self.loraplus_text_encoder_lr_ratio or self.loraplus_lr_ratio
        return {UNET: self.loraplus_lr_ratio, TEXT_ENCODER: text}


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that learn alike: `factor` times their part's learning rate. DoRA's magnitudes do
    not decay: towards zero they would take away what the base model knows."""

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
    """Sort what layers learn, by path and by the name in the file, into groups: what learns first,
    and of each part the usual group, where there is one. The model's UNet has so many `levels`.

    Raises `Refused` for factors of blocks that such a model lacks.
    """
    blocks = read_block_rates(choice.block_learning_rates, levels)
    found: dict[Group, list[Weight]] = {}
    for path, parts in weights.items():
        part = UNET if path.startswith("unet.") else TEXT_ENCODER
        of_block = blocks.get(block_of(path.removeprefix("unet.")), 1.0) if part == UNET else 1.0
        for name, weight in parts.items():
            ratio = choice.ratios()[part] if name == UPPER_HALF else 1.0
            group = Group(part, of_block * ratio, decays=name != DORA_SCALE)
            found.setdefault(group, []).append(weight)
    order = list(dict.fromkeys(group.part for group in found))
    place = {
        group: (group.factor == 0, order.index(group.part), group != Group(group.part))
        for group in found
    }
    return dict(sorted(found.items(), key=lambda item: place[item[0]]))


def groups_without_model(
    parts: Iterable[str], choice: RateChoice, *, has_halves: bool
) -> list[Group]:
    """Tell the groups that there may be, as far as the settings say; `has_halves`: of LoRAs."""
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
    """Return by name what the optimizer has to know of a group beside its rate."""
    return {
        group.name: {"factor": group.factor, **({} if group.decays else {"weight_decay": 0.0})}
        for group in groups
        if group != Group(group.part)
    }
