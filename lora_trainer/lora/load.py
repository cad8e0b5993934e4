"""Going on from an existing LoRA, LoHa or LoKr: reads kohya's layout, ours or another trainer's,
and fits it to the layers of UNet and text encoders.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from ..base.errors import Refused
from ..base.paths import expanded
from ..base.tensor_files import Header, parse_header, read_header, read_tensor
from .adapter_layers import (
    DORA_SCALE,
    LOHA_NAMES,
    LOKR_NAMES,
    LORA_NAMES,
    AdapterSpec,
    RankAlpha,
    is_full_lokr,
)
from .blocks import levels_of
from .build_layers import weight_shapes
from .loha_lokr import factorization
from .target_layers import PROJECTIONS, targets
from .weight_names import unet_to_diffusers, unet_to_ldm

_ALPHA = "alpha"
_MOST_FACTOR = (
    128  # above the square root of every layer's size, where another factor makes no difference
)
_KINDS = {"lora": LORA_NAMES, "loha": LOHA_NAMES, "lokr": LOKR_NAMES}
_TEXT_ENCODERS = {"lora_te_": "te1", "lora_te1_": "te1", "lora_te2_": "te2"}
_TEXT_LAYER = re.compile(r"(?:layers|resblocks)\.(\d+)\.(?:self_)?(attn|mlp)\.(\w+)$")
Sizes = Mapping[str, tuple[int, ...]]
Weights = dict[str, dict[str, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class FoundLora:
    """What the header of a file says: its kind ("lora", "loha", "lokr"), `sizes` of each layer's
    weights, `ranks` and `alphas` (none stored: the rank), all by kohya's layer names; how many
    numbers that is, and how many of the layers are a text encoder's.
    """

    path: Path
    kind: str
    sizes: Mapping[str, Sizes]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    parameters: int
    text_encoder_layers: int

    @property
    def is_dora(self) -> bool:
        return any(DORA_SCALE in parts for parts in self.sizes.values())

    @property
    def rank(self) -> int:
        return Counter(self.ranks.values()).most_common(1)[0][0]

    @property
    def alpha(self) -> float:
        return Counter(self.alphas.values()).most_common(1)[0][0]


def find_lora(name: str, lora_dir: Path) -> Path:
    """Return the file of a LoRA given by its name in the LoRA folder or by path; raises
    `Refused`.
    """
    path = expanded(name)
    listed = (
        sorted(lora_dir.rglob("*.safetensors")) if path.name == name and lora_dir.is_dir() else []
    )
    found = next(
        (file for file in listed if name in (file.stem, file.name)),
        path if path.is_file() else None,
    )
    if found is None:
        raise Refused(
            f"There is no LoRA {name!r} to go on from, neither as a file nor in {lora_dir}.",
            field="init_lora",
            code="no_lora",
        )
    return found


def look_into(path: Path) -> FoundLora:
    """Read a file's kind, layers, ranks and alphas; raises `Refused` for one that is damaged or
    none of the kinds in kohya's layout.

    A file that has not changed is not read again: a page asks with every key press.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _look_into(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _look_into(path: Path, size_bytes: int, changed_ns: int) -> FoundLora:
    try:
        header = read_header(path)
        layers: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in header.shapes.items():
            layer, _, part = name.partition(".")
            layers.setdefault(layer, {})[part] = shape
        alphas = _read_alphas(
            path, header, [layer for layer, parts in layers.items() if _ALPHA in parts]
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    layers = {
        layer: {part: size for part, size in parts.items() if part != _ALPHA}
        for layer, parts in layers.items()
    }
    kind = next(
        (
            kind
            for kind, names in _KINDS.items()
            if any(names[0] in parts or names[1] in parts for parts in layers.values())
        ),
        "lora",
    )
    if odd := _odd(layers, kind) or next(
        (
            f"{layer}.{_ALPHA} is {alpha}"
            for layer, alpha in alphas.items()
            if not math.isfinite(alpha)
        ),
        "",
    ):
        raise _refused(
            f"{path.name} is not a LoRA that can be gone on from ({odd}). It must be a LoRA, LoHa"
            " or LoKr in kohya's layout; mixtures and full models are not."
        )
    if rows := next(
        (
            layer
            for layer, parts in layers.items()
            if DORA_SCALE in parts and parts[DORA_SCALE][0] != 1
        ),
        "",
    ):
        raise _refused(
            f"{path.name} is a DoRA whose magnitudes are those of the outputs ({rows}.{DORA_SCALE}"
            f" is {layers[rows][DORA_SCALE]}; LyCORIS's wd_on_output, or peft's). Here, as in the"
            " WebUI, they are those of the inputs, (1, inputs), so it cannot be gone on from."
        )
    ranks = {layer: _rank(parts, alphas.get(layer)) for layer, parts in layers.items()}
    return FoundLora(
        path,
        kind,
        layers,
        ranks,
        {layer: alphas.get(layer, float(rank)) for layer, rank in ranks.items()},
        sum(math.prod(size) for parts in layers.values() for size in parts.values()),
        sum(layer.startswith(tuple(_TEXT_ENCODERS)) for layer in layers),
    )


def _read_alphas(path: Path, header: Header, layers: list[str]) -> dict[str, float]:
    """Read what is one number each; raises ValueError for an alpha that is none."""
    with open(path, "rb") as file:
        if large := next(
            (
                layer
                for layer in layers
                if math.prod(header.entries[f"{layer}.{_ALPHA}"].shape) != 1
            ),
            None,
        ):
            raise ValueError(f"{large}.{_ALPHA} is not one number")
        return {layer: float(read_tensor(file, header, f"{layer}.{_ALPHA}")) for layer in layers}


def fit(
    found: FoundLora, parts: torch.nn.ModuleDict, export_name: Callable[[str], str]
) -> tuple[dict[str, RankAlpha], Weights, AdapterSpec]:
    """Match a file's layers with the model's: shapes and float32 weights by path, and how they are
    built; raises `Refused` for one that does not fit.

    Layers of a text encoder are left out where `parts` has none.
    """
    wanted = [
        layer
        for layer in found.ranks
        if any(part != "unet" for part in parts) or not layer.startswith(tuple(_TEXT_ENCODERS))
    ]
    known = _modules_by_path(parts)
    paths = _paths_by_name(known, export_name)
    if unknown := [layer for layer in wanted if layer not in paths]:
        raise _misfit(
            found, f"has {len(unknown)} layers that this checkpoint lacks (first: {unknown[0]})"
        )
    layers = {paths[layer]: layer for layer in wanted}
    if lonely := next(
        (
            path
            for path, (_, siblings) in known.items()
            if path in layers and any(sibling not in layers for sibling in siblings)
        ),
        None,
    ):
        raise _misfit(
            found, f"changes {layers[lonely]}, but not all of the attention that it is part of"
        )
    form = _form(found, {layer: known[path][0] for path, layer in layers.items()})
    shapes, weights = {}, {}
    with open(found.path, "rb") as file:
        header = _header_again(found, file)
        for path in (
            path for path in known if path in layers
        ):  # in the order as when they are made without a file
            layer = layers[path]
            shapes[path] = RankAlpha(found.ranks[layer], found.alphas[layer])
            weights[path] = {
                part: _fitting(found, layer, part, size, header, file)
                for part, size in weight_shapes(known[path][0], shapes[path].rank, form).items()
            }
    return shapes, weights, form


def _header_again(found: FoundLora, file: BinaryIO) -> Header:
    """Read the header of the file that is open now: it may have been replaced since it was looked
    into.
    """
    try:
        header = parse_header(file, file_bytes=os.fstat(file.fileno()).st_size)
    except ValueError as error:
        raise _unreadable(found.path, error) from error
    if any(
        header.shapes.get(f"{layer}.{part}") != size
        for layer, parts in found.sizes.items()
        for part, size in parts.items()
    ):
        raise _refused(f"The LoRA {found.path.name} was changed in the meantime. Start again.")
    return header


def _odd(layers: Mapping[str, Sizes], kind: str) -> str:
    """Return what makes these layers none of that kind, or ""."""
    for layer, parts in layers.items():
        if strange := sorted(parts.keys() - {*_KINDS[kind], DORA_SCALE}):
            return f"{layer}.{strange[0]}"
        if missing := _missing(parts, kind):
            return f"{layer}.{missing} is missing"
        if flat := next(
            (name for name, size in parts.items() if len(size) < 2 or not math.prod(size)), None
        ):
            return f"{layer}.{flat} is {parts[flat]}"
    return "" if layers else "it is empty"


def _missing(parts: Sizes, kind: str) -> str:
    if kind == "lokr":
        needed = [
            name
            for half in ("lokr_w1", "lokr_w2")
            if half not in parts
            for name in (f"{half}_a", f"{half}_b")
        ]
    else:
        needed = _KINDS[kind][:4] if ("hada_t1" in parts) == ("hada_t2" in parts) else LOHA_NAMES
    return next((name for name in needed if name not in parts), "")


def _rank(parts: Sizes, alpha: float | None) -> int:
    """Return the rank that made a layer. Two full matrices have none: any that is large enough says
    the same, and LyCORIS keeps it as alpha.
    """
    if is_full_lokr(parts):
        least = max(
            1, *(-(-side // 2) for name in ("lokr_w1", "lokr_w2") for side in parts[name][:2])
        )
        return (
            int(alpha)
            if alpha and math.isfinite(alpha) and alpha == int(alpha) and alpha >= least
            else least
        )
    return next(
        parts[name][0]
        for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        if name in parts
    )


def _form(found: FoundLora, weights: Mapping[str, torch.Size]) -> AdapterSpec:
    """Find out how the layers, whose modules' weights have these sizes, were built."""
    has = {part for layer in weights for part in found.sizes[layer]}
    form = AdapterSpec(
        found.kind,
        tucker=bool(has & {"hada_t1", "lokr_t2"}),
        lokr_both="lokr_w1_a" in has,
        use_dora=DORA_SCALE in has,
    )
    if found.kind != "lokr":
        return form
    split = functools.cache(factorization)
    small = {
        layer: parts.get("lokr_w1") or (parts["lokr_w1_a"][0], parts["lokr_w1_b"][1])
        for layer, parts in found.sizes.items()
        if layer in weights
    }
    if odd := next(
        (
            layer
            for layer, weight in weights.items()
            if any(whole % side for side, whole in zip(small[layer], weight, strict=False))
        ),
        None,
    ):
        raise _misfit(
            found,
            f"cuts {odd} up into {small[odd]} and a rest, which {tuple(weights[odd][:2])} cannot be"
            " cut into",
        )
    sides = {side for size in small.values() for side in size}
    factors = [
        -1,
        *range(1, _MOST_FACTOR + 1),
        *sorted(side for side in sides if side > _MOST_FACTOR),
    ]
    factor = next(
        (
            factor
            for factor in factors
            if all(
                (split(weight[0], factor)[0], split(weight[1], factor)[0]) == small[layer]
                for layer, weight in weights.items()
            )
        ),
        None,
    )
    if factor is None:
        raise _misfit(found, "is a LoKr whose layers are not cut up by one common factor")
    return dataclasses.replace(form, lokr_factor=factor)


def _modules_by_path(parts: torch.nn.ModuleDict) -> dict[str, tuple[torch.Size, tuple[str, ...]]]:
    """Return for every layer that a file may change the size of its weight and, for the projections
    of a `nn.MultiheadAttention`, the paths of all four.
    """
    text = {path for path, _ in targets(parts, "all") if not path.startswith("unet.")}
    found: dict[str, tuple[torch.Size, tuple[str, ...]]] = {}
    for path, module in parts.named_modules():
        if isinstance(module, torch.nn.MultiheadAttention) and f"{path}.{PROJECTIONS[0]}" in text:
            siblings = tuple(f"{path}.{name}" for name in PROJECTIONS)
            found.update(dict.fromkeys(siblings, (module.out_proj.weight.shape, siblings)))
        elif isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and (
            path.startswith("unet.") or path in text
        ):
            found.setdefault(path, (module.weight.shape, ()))
    return found


def _paths_by_name(
    paths: Mapping[str, object], export_name: Callable[[str], str]
) -> dict[str, str]:
    """Map every name that a layer may have in a file to its path: the name we export, diffusers'
    and the checkpoint's own.
    """
    levels = levels_of(path.removeprefix("unet.") for path in paths)
    names: dict[str, str] = {}
    for path in paths:
        names.update(dict.fromkeys(_names_of(path, levels), path))
        with contextlib.suppress(KeyError):  # of no block, never part of a LoRA of ours
            names[export_name(path)] = path
    return names


def _names_of(path: str, levels: int) -> Iterator[str]:
    part, _, inside = path.partition(".")
    if part == "unet":
        for rename in (
            str,
            functools.partial(unet_to_diffusers, levels=levels),
            functools.partial(unet_to_ldm, levels=levels),
        ):
            with contextlib.suppress(KeyError):  # not a name of that layout
                yield "lora_unet_" + rename(inside).replace(".", "_")
    elif found := _TEXT_LAYER.search(inside):
        leaf = {"c_fc": "fc1", "c_proj": "fc2"}.get(found[3], found[3])
        for prefix in (prefix for prefix, encoder in _TEXT_ENCODERS.items() if encoder == part):
            yield (
                f"{prefix}text_model_encoder_layers_{found[1]}"
                f"_{'self_attn' if found[2] == 'attn' else 'mlp'}_{leaf}"
            )


def _fitting(
    found: FoundLora, layer: str, part: str, wanted: tuple[int, ...], header: Header, file: BinaryIO
) -> torch.Tensor:
    """Return a weight in the layer's own form: a 1x1 convolution's may be stored as a linear
    layer's, and the other way round.
    """
    if part not in found.sizes[layer]:
        raise _misfit(
            found, f"builds {layer} in another way than its other layers: {part} is missing"
        )
    if math.prod(size := found.sizes[layer][part]) != math.prod(wanted):
        raise _misfit(found, f"has {layer}.{part} of {size}; this checkpoint needs {wanted}")
    try:
        weight = read_tensor(file, header, f"{layer}.{part}").float().reshape(wanted)
    except ValueError as error:
        raise _unreadable(found.path, error) from error
    if not torch.isfinite(weight).all():
        raise _refused(
            f"{found.path.name}: {layer} holds numbers that are not finite. The file is spoiled."
        )
    return weight


def _misfit(found: FoundLora, what: str) -> Refused:
    return _refused(
        f"{found.path.name} {what}. It was made for another kind of model, or in a way that cannot"
        " be gone on from."
    )


def _unreadable(path: Path, error: Exception) -> Refused:
    return _refused(
        f"The LoRA {path.name} cannot be read: {error}. It may be damaged, or no .safetensors file."
    )


def _refused(sentence: str) -> Refused:
    return Refused(sentence, field="init_lora", code="bad_lora")
