"""The network of an sd-scripts file: kind, rank and alpha, layers, blocks, LoRA+ and dropouts, as
`network_module` and `network_args` give them. A part of `kohya.translate`.
"""

from typing import Any

from ..base.text import number
from .conversion import Conversion, is_unset, parse_arguments, parse_numbers
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


def _network(conversion: Conversion, complete: bool, *, sdxl: bool) -> None:  # noqa: C901
    given = parse_arguments(conversion.take("network_args"))
    if "conv_dim" in conversion.values:  # lora-scripts has these outside
        given = {**{key: conversion.take(key) for key in ("conv_dim", "conv_alpha")}, **given}
    module = str(conversion.take("network_module", "networks.lora" if complete else ""))
    lycoris = module.startswith("lycoris")
    algorithm = str(given.pop("algo", "lora")).lower()
    kind = ALGORITHMS.get(algorithm) if lycoris else MODULES.get(module, "" if not module else None)
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
    rank, alpha = conversion.take("network_dim"), conversion.take("network_alpha")
    if number(rank) is None and rank is not None:
        conversion.skip("network_dim", rank, "it is not one number; Rank stays as it is")
        rank = None
    if kind == "lokr":
        rank = _whole(conversion, "network_dim", rank)
        given.update(
            {"conv_dim": _whole(conversion, "network_args conv_dim", given["conv_dim"])}
            if "conv_dim" in given
            else {}
        )
    if rank is not None:
        conversion.set("lora_rank", rank, "network_dim")
        alpha = (
            rank if alpha is not None and number(alpha) == 0 else alpha
        )  # as sd-scripts reads an alpha of 0
    if alpha is not None:
        conversion.set("lora_alpha", alpha, "network_alpha")
    _layers(
        conversion, given, lycoris=lycoris, module=module, rank=number(rank), alpha=number(alpha)
    )
    _blocks(conversion, given, rank=number(rank), alpha=number(alpha))
    _block_rates(conversion, given, sdxl=sdxl)
    _loraplus(conversion, given, kind or "lora")
    _dropouts(conversion, given, lycoris=lycoris)
    if True in [given.pop(name, False) for name in ("dora_wd", "weight_decompose")]:
        conversion.set("use_dora", True, "network_args dora_wd")
    if given.pop("rs_lora", False) is True:
        conversion.set("rslora", True, "network_args rs_lora")
    if not is_unset(factor := given.pop("factor", None)) and kind == "lokr":
        conversion.set("lokr_factor", factor, "network_args factor")
    for key, value in given.items():
        conversion.skip(
            f"network_args {key}", value, CANNOT_IN_NETWORK.get(key, unknown_setting(key, ()))
        )


def _layers(
    conversion: Conversion,
    given: dict[str, Any],
    *,
    lycoris: bool,
    module: str,
    rank: float | None,
    alpha: float | None,
) -> None:
    """sd-scripts trains 3x3 convolutions where conv_dim is given; LyCORIS does unless its preset
    says otherwise.
    """
    conv_rank, conv_alpha = given.pop("conv_dim", None), given.pop("conv_alpha", None)
    preset, targets, encoder = given.pop("preset", None), given.pop("targets", None), True
    conv_on = conv_rank is not None and number(conv_rank) != 0
    if lycoris:
        found = PRESETS.get(str(preset or "full"))
        if found is None:
            conversion.skip(
                "network_args preset",
                preset,
                "this choice of layers is not known; all layers are taken",
            )
        targets, encoder = found or ("all", True)
        conv_rank, conv_alpha = (
            (conv_rank if conv_on else rank),
            (conv_alpha if not is_unset(conv_alpha) else alpha),
        )
    elif module or conv_on:
        targets = "all" if conv_on else targets or "attention+feed-forward"
        conv_alpha = 1.0 if conv_alpha is None else conv_alpha
    if targets:
        conversion.set("lora_targets", targets, "network_module")
    if targets == "all" and conv_rank is not None:
        conversion.set("conv_rank", conv_rank, "network_args conv_dim")
        conversion.set(
            "conv_alpha",
            conv_rank if number(conv_alpha) == 0 else conv_alpha,
            "network_args conv_alpha",
        )
    if not encoder:
        conversion.values["network_train_unet_only"] = True


def _whole(conversion: Conversion, key: str, rank: Any) -> Any:
    """LoKr's users write a rank beyond every layer's for whole matrices; the highest here does the
    same.
    """
    if (number(rank) or 0) <= MOST_RANK:
        return rank
    conversion.skip(key, rank, f"{MOST_RANK} is taken, which gives whole matrices, too")
    return MOST_RANK


def _dropouts(conversion: Conversion, given: dict[str, Any], *, lycoris: bool) -> None:
    dropout, own = conversion.take("network_dropout"), given.pop("dropout", None)
    if not is_unset(chosen := own if lycoris and own is not None else dropout):
        key = "network_args dropout" if chosen is own else "network_dropout"
        conversion.set("lora_dropout", chosen, key)
        conversion.skip(
            key,
            chosen,
            "taken over, but not alike: Dropout leaves out the LoRA's inputs here"
            + ("" if lycoris else "; kohya's leaves out what lies between its two halves"),
        )
    for name in ("rank_dropout", "module_dropout"):
        if not is_unset(value := given.pop(name, None)):
            conversion.set(name, value, f"network_args {name}")


def _blocks(
    conversion: Conversion, given: dict[str, Any], *, rank: float | None, alpha: float | None
) -> None:
    """Turn ranks of all blocks into the WebUI's names of blocks."""
    dims, alphas = (
        parse_numbers(given.pop("block_dims", None)),
        parse_numbers(given.pop("block_alphas", None)),
    )
    if dims is not None:
        names = block_list(dims, alphas or [alpha or 1.0] * len(dims), rank=rank, alpha=alpha)
        if names is None:
            conversion.skip(
                "network_args block_dims",
                dims,
                "there are 25 blocks of SD1 and SD2 and 23 of SDXL, those of its middle alike here",
            )
        elif names:
            conversion.set("lora_blocks", names, "network_args block_dims")
    elif not is_unset(alphas):
        conversion.skip("network_args block_alphas", alphas, "it counts only with block_dims")


def _block_rates(conversion: Conversion, given: dict[str, Any], *, sdxl: bool) -> None:
    """Turn factors of the learning rate, a list or a curve for each part of the UNet, into the
    WebUI's names of blocks.
    """
    weights = {key: given.pop(key, None) for key in RATE_KEYS}
    threshold = number(given.pop("block_lr_zero_threshold", None)) or 0.0
    middle = parse_numbers(weights["mid_lr_weight"])
    sdxl = sdxl or len(middle or ()) == SDXL_MIDDLE
    side = SDXL_SIDE if sdxl else SIDE
    found = {
        key: rate_curve(value, SDXL_MIDDLE * sdxl or 1 if key == "mid_lr_weight" else side)
        for key, value in weights.items()
    }
    for key in [key for key, curve in found.items() if curve is None]:
        conversion.skip(
            f"network_args {key}",
            weights[key],
            "it is neither a list of factors from 0 nor one of " + ", ".join(CURVES),
        )
        found[key] = rate_curve(None, SDXL_MIDDLE if key == "mid_lr_weight" else side)
    down, middle, up = (
        [factor if factor > threshold else 0.0 for factor in found[key]] for key in RATE_KEYS
    )
    if len(set(middle)) > 1:
        conversion.skip(
            "network_args mid_lr_weight",
            weights["mid_lr_weight"],
            f"the middle learns at one rate here: {middle[0]:g} is taken",
        )
    if text := block_rates_text([*down, middle[0], *up]):
        conversion.set(
            "block_learning_rates",
            text,
            f"network_args {next(key for key in RATE_KEYS if weights[key] is not None)}",
        )


def _loraplus(conversion: Conversion, given: dict[str, Any], kind: str) -> None:
    """Both ratios may have one of their own; an algorithm without two halves passes over them, as
    in sd-scripts.
    """
    common, unet, encoder = (
        given.pop(f"loraplus_{part}lr_ratio", None) for part in ("", "unet_", "text_encoder_")
    )
    if kind != "lora":
        conversion.skip(
            "network_args loraplus_lr_ratio",
            common or unet or encoder,
            f"a {kind} has no halves that could learn at two rates",
        )
        return
    if not is_unset(ratio := common if is_unset(unet) else unet):
        conversion.set(
            "loraplus_lr_ratio",
            ratio,
            f"network_args loraplus_{'' if is_unset(unet) else 'unet_'}lr_ratio",
        )
    own = (
        encoder if not is_unset(encoder) else (common or 1.0) if not is_unset(unet) else None
    )  # where only the UNet has one
    if own is not None and number(own) != number(ratio):
        conversion.set(
            "loraplus_text_encoder_lr_ratio", own, "network_args loraplus_text_encoder_lr_ratio"
        )


def rate_curve(value: Any, length: int) -> list[float] | None:
    """Read the factors of so many blocks as sd-scripts does: a list, filled up with 1, or
    "cosine+0.25", a curve that is raised. None for anything else.
    """
    if value is None:
        return [1.0] * length
    name, _, offset = str(value).partition("+")
    if name in CURVES:
        base = number(offset or 0.0)
        return (
            None
            if base is None
            else [round(CURVES[name](at / max(1, length - 1)) + base, 6) for at in range(length)]
        )
    items = value.split(",") if isinstance(value, str) else value
    factors = parse_numbers(
        [item if str(item).strip() else 0 for item in items]
        if isinstance(items, (list, tuple))
        else items
    )
    if factors is None or min(factors, default=0) < 0 or (length > 1 and len(factors) == 1):
        return None
    return [*factors[:length], *[1.0] * (length - len(factors))]


def block_rates_text(factors: list[float]) -> str:
    """Write the factors of IN00 to OUT11, or OUT08, as `block_learning_rates`; "" when all are
    1.
    """
    half = len(factors) // 2
    names = [*(f"IN{at:02}" for at in range(half)), "MID", *(f"OUT{at:02}" for at in range(half))]
    parts: list[tuple[str, str, float]] = []
    for name, factor in zip(names, factors, strict=True):
        if parts and parts[-1][2] == factor and name[:2] == parts[-1][0][:2]:
            parts[-1] = (parts[-1][0], name, factor)
        else:
            parts.append((name, name, factor))
    return ", ".join(
        f"{first if first == last else f'{first}-{last}'}={factor:.10g}"
        for first, last, factor in parts
        if factor != 1
    )


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
    half = len(pairs) // 2
    if all(pair == (rank, alpha) for pair in pairs) or not any(pair[0] for pair in pairs):
        return "" if any(pair[0] for pair in pairs) else None
    names = [*(f"IN{at:02}" for at in range(half)), "MID", *(f"OUT{at:02}" for at in range(half))]
    parts: list[tuple[str, str, tuple[float, float]]] = []
    for name, pair in zip(names, pairs, strict=True):
        if parts and parts[-1][2] == pair and name[:2] == parts[-1][0][:2]:
            parts[-1] = (parts[-1][0], name, pair)
        else:
            parts.append((name, name, pair))
    return ", ".join(
        (first if first == last else f"{first}-{last}")
        + ("" if pair == (rank, alpha) else f"={pair[0]:g}:{pair[1]:g}")
        for first, last, pair in parts
        if pair[0]
    )
