"""Which layers of the UNet and the text encoders learn, and with what rank and alpha.

Paths begin with the part, `unet.` or `te1.`; inside they are the host's own: LDM's, sgm's and
open_clip's, or diffusers' and transformers'.
"""

import dataclasses
import re
from collections.abc import Iterator

import torch

from ..base.errors import Refused
from .adapter_layers import RankAlpha
from .blocks import (
    BASE,
    RATES_FIELD,
    BlockChoice,
    block_of,
    levels_of,
    read_block_rates,
    read_blocks,
)
from .weight_names import LEVELS

PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
)  # of a nn.MultiheadAttention, as the WebUI's loader calls them
_ATTENTION = re.compile(r".*transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
_FEED_FORWARD = re.compile(
    r".*(transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)|\.(proj_in|proj_out))"
)
_ENDS = re.compile(
    r"(time_embed|time_embedding|label_emb|add_embedding|conv_in|conv_out|input_blocks\.0\.0|out)(\..*)?"
)  # never part of a LoRA
_TEXT_ATTENTION = re.compile(r"(?!.*vision).*layers\.\d+\.self_attn\.(q|k|v|out)_proj")
_TEXT_MULTIHEAD = re.compile(r"(?!.*visual).*resblocks\.\d+\.attn")
_TEXT_FEED_FORWARD = re.compile(
    r"(?!.*(vision|visual)).*(layers\.\d+\.mlp\.fc[12]|resblocks\.\d+\.mlp\.c_(fc|proj))"
)


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """The settings that decide which layers learn, and how; 0 and "" mean as in the config."""

    targets: str
    rank: int
    alpha: float
    attention_rank: int = 0
    attention_alpha: float = 0.0
    feed_forward_rank: int = 0
    feed_forward_alpha: float = 0.0
    conv_rank: int = 0
    conv_alpha: float = 0.0
    text_encoder_rank: int = 0
    text_encoder_alpha: float = 0.0
    blocks: str = ""
    block_rates: str = ""
    unet: bool = True
    text_encoder: bool = False

    def shape(self, group: str, block: BlockChoice) -> RankAlpha:
        """Return rank and alpha of a layer: its block's where that has its own, else its group's,
        else the common ones. A rank without an alpha leaves the strength, alpha / rank, as it is.
        As in kohya, a convolution's own rank goes before its block's; a rank of 0 leaves a block
        out in any case.
        """
        rank = getattr(self, f"{group}_rank", 0) or self.rank
        alpha = getattr(self, f"{group}_alpha", 0) or self.alpha * rank / self.rank
        if block.rank == 0 or not (group == "conv" and self.conv_rank):
            rank, alpha = block.beside(rank, alpha)
        return RankAlpha(rank, alpha)


def plan_shapes(parts: torch.nn.ModuleDict, choice: LayerChoice) -> dict[str, RankAlpha]:
    """Give every layer that learns its rank and alpha, in the order of `parts.named_modules()`;
    raises `Refused` for a bad list of blocks.
    """
    levels = levels_in(parts)
    blocks = read_blocks(choice.blocks, levels) if "unet" in parts else {}
    idle = {
        name for name, factor in read_block_rates(choice.block_rates, levels).items() if factor == 0
    }
    of_unet = {name: block for name, block in blocks.items() if name != BASE}
    shapes = {}
    for path, group in targets(parts, choice.targets):
        in_unet = path.startswith("unet.")
        if choice.unet if in_unet else choice.text_encoder:
            named = block_of(path.removeprefix("unet.")) if in_unet else BASE
            block = blocks.get(named, BlockChoice(0) if in_unet and of_unet else BlockChoice())
            shape = choice.shape(group if in_unet else "text_encoder", block)
            if shape.rank and named not in idle:
                shapes[path] = shape
    if idle and not shapes:
        raise Refused(
            f"Learning rates of blocks: {choice.block_rates!r} leaves nothing that learns. Give"
            " some block a factor above 0.",
            field=RATES_FIELD,
            code="bad_value",
        )
    if blocks and not shapes:
        raise Refused(
            f"The blocks {choice.blocks!r} leave no layer to learn. Name some that have attention,"
            " or take more kinds of layers.",
            field="lora_blocks",
            code="bad_value",
        )
    return shapes


def levels_in(parts: torch.nn.ModuleDict) -> int:
    """Return how many levels the UNet among the parts has."""
    return (
        levels_of(path for path, _ in parts["unet"].named_modules()) if "unet" in parts else LEVELS
    )


def targets(parts: torch.nn.ModuleDict, wanted: str) -> Iterator[tuple[str, str]]:
    """Yield path and group ("attention", "feed_forward", "conv" or "other") of every layer that
    `wanted`, as in the config, names in any part.

    Of a `nn.MultiheadAttention` all four projections or none: the WebUI's loader passes over fewer.
    """
    for path, module in parts.named_modules():
        part, _, inside = path.partition(".")
        group = _unet_group(inside, module) if part == "unet" else _text_group(inside, module)
        if group is None or group not in {
            "attention": ("attention",),
            "attention+feed-forward": ("attention", "feed_forward"),
        }.get(wanted, (group,)):
            continue
        yield from (
            ((f"{path}.{name}", group) for name in PROJECTIONS)
            if isinstance(module, torch.nn.MultiheadAttention)
            else ((path, group),)
        )


def _unet_group(path: str, module: torch.nn.Module) -> str | None:
    if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or _ENDS.fullmatch(path):
        return None
    if _ATTENTION.fullmatch(path):
        return "attention"
    if _FEED_FORWARD.fullmatch(path):
        return "feed_forward"
    return (
        "conv" if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1) else "other"
    )


def _text_group(path: str, module: torch.nn.Module) -> str | None:
    if isinstance(module, torch.nn.MultiheadAttention):
        return (
            "attention"
            if _TEXT_MULTIHEAD.fullmatch(path) and module.in_proj_weight is not None
            else None
        )
    if not isinstance(module, torch.nn.Linear):
        return None
    return (
        "attention"
        if _TEXT_ATTENTION.fullmatch(path)
        else "feed_forward"
        if _TEXT_FEED_FORWARD.fullmatch(path)
        else None
    )
