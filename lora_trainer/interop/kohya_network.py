"""The network of an sd-scripts file: kind, rank and alpha, layers, blocks, LoRA+ and dropouts, as
`network_module` and `network_args` give them. A part of `kohya.translate`.
"""

import dataclasses
from typing import TypeVar

from ..base.text import number
from .conversion import Arguments, Conversion, is_unset, parse_arguments, parse_numbers
from .kohya_names import (
    ALGORITHMS,
    CANNOT_IN_NETWORK,
    CURVES,
    MODULES,
    MOST_RANK,
    PRESETS,
    RATE_KEYS,
    SDXL_MIDDLE,
    SDXL_SIDE,
    SIDE,
    unknown_setting,
)

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class _Network:
    """What the further steps must know: `args` are the network_args that are not yet used, `kind`
    is ours ("" where the file gives none, None for one that is not trained here).
    """

    args: Arguments
    module: str
    kind: str | None
    rank: float | None = None
    alpha: float | None = None

    @property
    def is_lycoris(self) -> bool:
        return self.module.startswith("lycoris")


def take_network(conversion: Conversion, *, complete: bool, sdxl: bool) -> None:
    """Take over all settings of the network; a `complete` source that names none has kohya's
    LoRA.
    """
    args = parse_arguments(conversion.take("network_args"))
    if "conv_dim" in conversion.values:  # lora-scripts has these outside
        outside = {key: conversion.take(key) for key in ("conv_dim", "conv_alpha")}
        args = {**outside, **args}
    module = str(conversion.take("network_module", "networks.lora" if complete else ""))
    network = _Network(args, module, _take_kind(conversion, args, module))
    rank, alpha = _take_rank_and_alpha(conversion, network)
    network = dataclasses.replace(network, rank=rank, alpha=alpha)
    _take_layers(conversion, network)
    _take_blocks(conversion, network)
    _take_block_rates(conversion, args, sdxl=sdxl)
    _take_loraplus(conversion, args, network.kind or "lora")
    _take_dropouts(conversion, network)
    _take_variants(conversion, network)
    for key, value in args.items():
        reason = CANNOT_IN_NETWORK.get(key, unknown_setting(key, ()))
        conversion.skip(f"network_args {key}", value, reason)


def _take_kind(conversion: Conversion, args: Arguments, module: str) -> str | None:
    """Take over lora_type from the module or LyCORIS's algorithm; return `_Network.kind`."""
    lycoris = module.startswith("lycoris")
    algorithm = str(args.pop("algo", "lora")).lower()
    kind: str | None = ""
    if lycoris:
        kind = ALGORITHMS.get(algorithm)
    elif module:
        kind = MODULES.get(module)
    if kind is None:
        conversion.skip(
            "network_module",
            f"{module} {algorithm}" if lycoris else module,
            "only lora, loha and lokr are trained here; an ordinary LoRA is taken instead",
        )
    elif module == "networks.lora_fa":
        conversion.skip(
            "network_module",
            module,
            "an ordinary LoRA is trained instead: both of its halves learn",
        )
    if module:
        conversion.set("lora_type", kind or "lora", "network_module")
    return kind


def _take_rank_and_alpha(
    conversion: Conversion, network: _Network
) -> tuple[float | None, float | None]:
    """Take over rank and alpha, and return them as numbers."""
    rank, alpha = conversion.take("network_dim"), conversion.take("network_alpha")
    if number(rank) is None and rank is not None:
        conversion.skip("network_dim", rank, "it is not one number; Rank stays as it is")
        rank = None
    if network.kind == "lokr":
        rank = _limit_rank(conversion, "network_dim", rank)
        if "conv_dim" in network.args:
            conv_rank = network.args["conv_dim"]
            network.args["conv_dim"] = _limit_rank(conversion, "network_args conv_dim", conv_rank)
    if rank is not None:
        conversion.set("lora_rank", rank, "network_dim")
        if alpha is not None and number(alpha) == 0:
            alpha = rank  # as sd-scripts reads an alpha of 0
    if alpha is not None:
        conversion.set("lora_alpha", alpha, "network_alpha")
    return number(rank), number(alpha)


def _limit_rank(conversion: Conversion, key: str, rank: object) -> object:
    """Limit a LoKr's rank: its users write one beyond every layer's for full matrices, and the
    highest here does the same.
    """
    if (number(rank) or 0) <= MOST_RANK:
        return rank
    conversion.skip(key, rank, f"{MOST_RANK} is taken, which gives whole matrices, too")
    return MOST_RANK


def _take_layers(conversion: Conversion, network: _Network) -> None:
    """Take over which layers are trained, and the convolutions' rank and alpha.

    sd-scripts trains 3x3 convolutions where conv_dim is given; LyCORIS does unless its preset says
    otherwise.
    """
    args = network.args
    conv_rank, conv_alpha = args.pop("conv_dim", None), args.pop("conv_alpha", None)
    preset, targets = args.pop("preset", None), args.pop("targets", None)
    conv_on = conv_rank is not None and number(conv_rank) != 0
    if network.is_lycoris:
        targets, with_text_encoder = _lycoris_targets(conversion, preset)
        conv_rank = conv_rank if conv_on else network.rank
        conv_alpha = network.alpha if is_unset(conv_alpha) else conv_alpha
        if not with_text_encoder:
            conversion.values["network_train_unet_only"] = True
    elif network.module or conv_on:
        targets = "all" if conv_on else targets or "attention+feed-forward"
        conv_alpha = 1.0 if conv_alpha is None else conv_alpha
    if targets:
        conversion.set("lora_targets", targets, "network_module")
    if targets == "all" and conv_rank is not None:
        conv_alpha = conv_rank if number(conv_alpha) == 0 else conv_alpha
        conversion.set("conv_rank", conv_rank, "network_args conv_dim")
        conversion.set("conv_alpha", conv_alpha, "network_args conv_alpha")


def _lycoris_targets(conversion: Conversion, preset: object) -> tuple[str, bool]:
    """Return our lora_targets of LyCORIS's preset, and whether the text encoder takes part."""
    found = PRESETS.get(str(preset or "full"))
    if found is None:
        conversion.skip(
            "network_args preset",
            preset,
            "this choice of layers is not known; all layers are taken",
        )
    return found or ("all", True)


def _take_dropouts(conversion: Conversion, network: _Network) -> None:
    dropout, own = conversion.take("network_dropout"), network.args.pop("dropout", None)
    chosen = own if network.is_lycoris and own is not None else dropout
    if not is_unset(chosen):
        key = "network_args dropout" if chosen is own else "network_dropout"
        conversion.set("lora_dropout", chosen, key)
        reason = "taken over, but not alike: Dropout leaves out the LoRA's inputs here"
        if not network.is_lycoris:
            reason += "; kohya's leaves out what lies between its two halves"
        conversion.skip(key, chosen, reason)
    for name in ("rank_dropout", "module_dropout"):
        if not is_unset(value := network.args.pop(name, None)):
            conversion.set(name, value, f"network_args {name}")


def _take_variants(conversion: Conversion, network: _Network) -> None:
    """Take over DoRA, rsLoRA and LoKr's factor."""
    args = network.args
    if True in [args.pop(name, False) for name in ("dora_wd", "weight_decompose")]:
        conversion.set("use_dora", True, "network_args dora_wd")
    if args.pop("rs_lora", False) is True:
        conversion.set("rslora", True, "network_args rs_lora")
    factor = args.pop("factor", None)
    if network.kind == "lokr" and not is_unset(factor):
        conversion.set("lokr_factor", factor, "network_args factor")


def _take_blocks(conversion: Conversion, network: _Network) -> None:
    """Turn ranks of all blocks into the WebUI's names of blocks."""
    dims = parse_numbers(network.args.pop("block_dims", None))
    alphas = parse_numbers(network.args.pop("block_alphas", None))
    if dims is None:
        if not is_unset(alphas):
            reason = "it counts only with block_dims"
            conversion.skip("network_args block_alphas", alphas, reason)
        return
    alphas = alphas or [network.alpha or 1.0] * len(dims)
    blocks = block_list(dims, alphas, rank=network.rank, alpha=network.alpha)
    if blocks is None:
        conversion.skip(
            "network_args block_dims",
            dims,
            "there are 25 blocks of SD1 and SD2 and 23 of SDXL, those of its middle alike here",
        )
    elif blocks:
        conversion.set("lora_blocks", blocks, "network_args block_dims")


def _take_block_rates(conversion: Conversion, args: Arguments, *, sdxl: bool) -> None:
    """Turn factors of the learning rate, a list or a curve for each part of the UNet, into the
    WebUI's names of blocks.
    """
    weights = {key: args.pop(key, None) for key in RATE_KEYS}
    threshold = number(args.pop("block_lr_zero_threshold", None)) or 0.0
    sdxl = sdxl or len(parse_numbers(weights["mid_lr_weight"]) or ()) == SDXL_MIDDLE
    side = SDXL_SIDE if sdxl else SIDE
    lengths = dict.fromkeys(RATE_KEYS, side) | {"mid_lr_weight": SDXL_MIDDLE if sdxl else 1}
    factors: dict[str, list[float]] = {}
    for key, length in lengths.items():
        curve = rate_curve(weights[key], length)
        if curve is None:
            conversion.skip(
                f"network_args {key}",
                weights[key],
                "it is neither a list of factors from 0 nor one of " + ", ".join(CURVES),
            )
            curve = [1.0] * length
        factors[key] = [factor if factor > threshold else 0.0 for factor in curve]
    down, middle, up = (factors[key] for key in RATE_KEYS)
    if len(set(middle)) > 1:
        conversion.skip(
            "network_args mid_lr_weight",
            weights["mid_lr_weight"],
            f"the middle learns at one rate here: {middle[0]:g} is taken",
        )
    if text := block_rates_text([*down, middle[0], *up]):
        given = next(key for key in RATE_KEYS if weights[key] is not None)
        conversion.set("block_learning_rates", text, f"network_args {given}")


def _take_loraplus(conversion: Conversion, args: Arguments, kind: str) -> None:
    """Take over LoRA+'s ratios: UNet and text encoder may have one of their own. An algorithm
    without two halves ignores them, as in sd-scripts.
    """
    common, unet, encoder = (
        args.pop(f"loraplus_{part}lr_ratio", None) for part in ("", "unet_", "text_encoder_")
    )
    if kind != "lora":
        conversion.skip(
            "network_args loraplus_lr_ratio",
            common or unet or encoder,
            f"a {kind} has no halves that could learn at two rates",
        )
        return
    ratio, prefix = (common, "") if is_unset(unet) else (unet, "unet_")
    if not is_unset(ratio):
        conversion.set("loraplus_lr_ratio", ratio, f"network_args loraplus_{prefix}lr_ratio")
    own = None
    if not is_unset(encoder):
        own = encoder
    elif not is_unset(unet):  # the UNet's alone is not the text encoder's
        own = common or 1.0
    if own is not None and number(own) != number(ratio):
        name = "loraplus_text_encoder_lr_ratio"
        conversion.set(name, own, f"network_args {name}")


def rate_curve(value: object, length: int) -> list[float] | None:
    """Read the factors of so many blocks as sd-scripts does: a list, filled up with 1, or
    "cosine+0.25", a curve that is raised. None for anything else.
    """
    if value is None:
        return [1.0] * length
    name, _, offset = str(value).partition("+")
    if name in CURVES:
        base = number(offset or 0.0)
        if base is None:
            return None
        last = max(1, length - 1)
        return [round(CURVES[name](at / last) + base, 6) for at in range(length)]
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, (list, tuple)):
        items = [item if str(item).strip() else 0 for item in items]
    factors = parse_numbers(items)
    if factors is None or min(factors, default=0) < 0 or (length > 1 and len(factors) == 1):
        return None
    return [*factors[:length], *[1.0] * (length - len(factors))]


def block_rates_text(factors: list[float]) -> str:
    """Write the factors of IN00 to OUT11, or OUT08, as `block_learning_rates`; "" when all are
    1.
    """
    ranges = _ranges_of_blocks(factors)
    return ", ".join(f"{blocks}={factor:.10g}" for blocks, factor in ranges if factor != 1)


def block_list(
    ranks: list[float], alphas: list[float], *, rank: float | None, alpha: float | None
) -> str | None:
    """Write ranks and alphas of every block, in sd-scripts' order, as `lora_blocks`: "IN04-IN08,
    MID=64:32"; "" when all are as usual.

    25 values are IN00-IN11, MID, OUT00-OUT11; 23 are SDXL's embeddings (which do not learn),
    IN00-IN08, three of the middle, OUT00-OUT08, the last layer. None for another number, no block
    at all, or a middle of three kinds.
    """
    if len(ranks) != len(alphas) or len(ranks) not in (23, 25):
        return None
    pairs = list(zip(ranks, alphas, strict=True))
    if len(pairs) == 23:
        if len(set(pairs[10:13])) > 1:
            return None
        pairs = [*pairs[1:10], pairs[10], *pairs[13:22]]
    if not any(own_rank for own_rank, _ in pairs):
        return None
    if all(pair == (rank, alpha) for pair in pairs):
        return ""
    entries = []
    for blocks, (own_rank, own_alpha) in _ranges_of_blocks(pairs):
        if own_rank:
            as_usual = (own_rank, own_alpha) == (rank, alpha)
            entries.append(blocks if as_usual else f"{blocks}={own_rank:g}:{own_alpha:g}")
    return ", ".join(entries)


def _ranges_of_blocks(values: list[Value]) -> list[tuple[str, Value]]:
    """Return neighbouring blocks of the same value together: ("IN04-IN08", value), ("MID", ...)."""
    half = len(values) // 2
    names = [*(f"IN{at:02}" for at in range(half)), "MID", *(f"OUT{at:02}" for at in range(half))]
    ranges: list[tuple[str, str, Value]] = []
    for name, value in zip(names, values, strict=True):
        if ranges and ranges[-1][2] == value and name[:2] == ranges[-1][0][:2]:
            ranges[-1] = (ranges[-1][0], name, value)
        else:
            ranges.append((name, name, value))
    return [(first if first == last else f"{first}-{last}", value) for first, last, value in ranges]
