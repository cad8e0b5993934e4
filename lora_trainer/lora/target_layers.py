"""Which layers of the UNet and the text encoders learn, and with what rank and alpha.

Paths begin with the part, `unet.` or `te1.`; inside they are the host's own: LDM's, sgm's and
open_clip's, or diffusers' and transformers'.
"""

import dataclasses
import re
from collections.abc import Iterator

import torch

from ..base.errors import ErrorCode, Refused
from .adapter_layers import RankAlpha
from .blocks import (
    BASE,
    RATES_FIELD,
    BlockRank,
    block_of,
    levels_of,
    read_block_rates,
    read_blocks,
)
from .weight_names import LEVELS

# Of a nn.MultiheadAttention, as the WebUI's loader calls them.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_GROUPS_OF_TARGETS = {
    "attention": ("attention",),
    "attention+feed-forward": ("attention", "feed_forward"),
    "all": ("attention", "feed_forward", "conv", "other"),
}
_ATTENTION = re.compile(r".*transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
_FEED_FORWARD = re.compile(
    r".*(transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)|\.(proj_in|proj_out))"
)
# Never part of a LoRA.
_ENDS = re.compile(
    r"(time_embed|time_embedding|label_emb|add_embedding|conv_in|conv_out|input_blocks\.0\.0|out)(\..*)?"
)
_TEXT_ATTENTION = re.compile(r"(?!.*vision).*layers\.\d+\.self_attn\.(q|k|v|out)_proj")
_TEXT_MULTIHEAD = re.compile(r"(?!.*visual).*resblocks\.\d+\.attn")
_TEXT_FEED_FORWARD = re.compile(
    r"(?!.*(vision|visual)).*(layers\.\d+\.mlp\.fc[12]|resblocks\.\d+\.mlp\.c_(fc|proj))"
)


@dataclasses.dataclass(frozen=True)
class LayerSettings:
    """The settings that decide which layers are trained, and with what rank and alpha.

    `rank` and `alpha` are the common ones; a group with an own rank or alpha of 0 takes them, as
    `rank_alpha` says. `blocks` and `block_rates` are "" for all blocks alike.
    """

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

    def rank_alpha(self, group: str, block: BlockRank) -> RankAlpha:
        """Return rank and alpha of a layer: its block's where that has its own, else its group's,
        else the common ones.

        A rank without an alpha keeps alpha / rank as it is. As in kohya, a convolution's own rank
        goes before its block's; a rank of 0 leaves a block out in any case.
        """
        rank = getattr(self, f"{group}_rank", 0) or self.rank
        alpha = getattr(self, f"{group}_alpha", 0) or self.alpha * rank / self.rank
        if block.rank == 0 or not (group == "conv" and self.conv_rank):
            rank, alpha = block.with_defaults(rank, alpha)
        return RankAlpha(rank, alpha)


def assign_ranks(parts: torch.nn.ModuleDict, settings: LayerSettings) -> dict[str, RankAlpha]:
    """Return rank and alpha of every trained layer by path, in the order of
    `parts.named_modules()`.

    Raises `Refused` for a bad list of blocks, and where there is nothing to train.
    """
    levels = count_unet_levels(parts)
    blocks = read_blocks(settings.blocks, levels) if "unet" in parts else {}
    rates = read_block_rates(settings.block_rates, levels)
    frozen = {name for name, factor in rates.items() if factor == 0}
    rank_alphas = {}
    for path, group in find_target_layers(parts, settings.targets):
        in_unet = path.startswith("unet.")
        if not (settings.unet if in_unet else settings.text_encoder):
            continue
        name = block_of(path.removeprefix("unet.")) if in_unet else BASE
        block = _rank_of_block(name, blocks)
        rank_alpha = settings.rank_alpha(group if in_unet else "text_encoder", block)
        if rank_alpha.rank and name not in frozen:
            rank_alphas[path] = rank_alpha
    if not rank_alphas:
        raise _nothing_to_train(settings, nothing_learns=bool(frozen), no_layers=bool(blocks))
    return rank_alphas


def _rank_of_block(name: str | None, blocks: dict[str, BlockRank]) -> BlockRank:
    """Return what a list of blocks says of one: it leaves out the UNet's blocks that it does not
    name, unless it names none at all.
    """
    if name is not None and name in blocks:
        return blocks[name]
    names_unet = any(listed != BASE for listed in blocks)
    return BlockRank(0) if name != BASE and names_unet else BlockRank()


def _nothing_to_train(settings: LayerSettings, *, nothing_learns: bool, no_layers: bool) -> Refused:
    if nothing_learns:
        return Refused(
            f"Learning rates of blocks: {settings.block_rates!r} leaves nothing that learns. Give"
            " some block a factor above 0.",
            field=RATES_FIELD,
            code=ErrorCode.BAD_VALUE,
        )
    if no_layers:
        return Refused(
            f"The blocks {settings.blocks!r} leave no layer to learn. Name some that have"
            " attention, or take more kinds of layers.",
            field="lora_blocks",
            code=ErrorCode.BAD_VALUE,
        )
    return Refused(
        "This model has no layer of the kinds that are to learn. Take more kinds of layers, or"
        " switch on another part of the model.",
        field="lora_targets",
        code=ErrorCode.BAD_VALUE,
    )


def count_unet_levels(parts: torch.nn.ModuleDict) -> int:
    """Return how many levels the UNet among the parts has."""
    if "unet" not in parts:
        return LEVELS
    return levels_of(path for path, _ in parts["unet"].named_modules())


def find_target_layers(
    parts: torch.nn.ModuleDict, target_setting: str
) -> Iterator[tuple[str, str]]:
    """Yield path and group ("attention", "feed_forward", "conv" or "other") of every layer that the
    setting `lora_targets` names in any part.

    Of a `nn.MultiheadAttention` all four projections: the WebUI's loader ignores fewer.
    """
    groups = _GROUPS_OF_TARGETS[target_setting]
    for path, module in parts.named_modules():
        part, _, inside = path.partition(".")
        group = _unet_group(inside, module) if part == "unet" else _text_group(inside, module)
        if group is None or group not in groups:
            continue
        if isinstance(module, torch.nn.MultiheadAttention):
            yield from ((f"{path}.{name}", group) for name in PROJECTIONS)
        else:
            yield path, group


def _unet_group(path: str, module: torch.nn.Module) -> str | None:
    if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or _ENDS.fullmatch(path):
        return None
    if _ATTENTION.fullmatch(path):
        return "attention"
    if _FEED_FORWARD.fullmatch(path):
        return "feed_forward"
    if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
        return "conv"
    return "other"


def _text_group(path: str, module: torch.nn.Module) -> str | None:
    if isinstance(module, torch.nn.MultiheadAttention):
        has_one_weight = module.in_proj_weight is not None
        return "attention" if _TEXT_MULTIHEAD.fullmatch(path) and has_one_weight else None
    if not isinstance(module, torch.nn.Linear):
        return None
    if _TEXT_ATTENTION.fullmatch(path):
        return "attention"
    return "feed_forward" if _TEXT_FEED_FORWARD.fullmatch(path) else None
