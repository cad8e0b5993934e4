"""Reads the LoRA, LoHa or LoKr that training goes on from (`init_lora`): kohya's layout, written
here or by another trainer, fitted to the layers of UNet and text encoders.

`inspect_lora` reads the header only; `fit_to_model` reads the weights.
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
from typing import BinaryIO, NamedTuple

import torch

from ..base.errors import ErrorCode, Refused
from ..base.paths import expand_user
from ..base.tensor_files import Header, parse_header, read_header, read_tensor
from .adapter_layers import (
    DORA_SCALE,
    LOHA_NAMES,
    LOKR_NAMES,
    LORA_NAMES,
    AdapterSpec,
    RankAlpha,
    Weights,
    is_full_lokr,
)
from .blocks import levels_of
from .build_layers import weight_shapes
from .loha_lokr import factorization
from .lora_folder import lora_files
from .target_layers import PROJECTIONS, find_target_layers
from .weight_names import unet_to_diffusers, unet_to_ldm

_ALPHA = "alpha"
# Above the square root of every layer's size, where another factor makes no difference.
_LARGEST_FACTOR = 128
_WEIGHT_NAMES = {"lora": LORA_NAMES, "loha": LOHA_NAMES, "lokr": LOKR_NAMES}
_TEXT_ENCODERS = {"lora_te_": "te1", "lora_te1_": "te1", "lora_te2_": "te2"}
_TEXT_LAYER = re.compile(r"(?:layers|resblocks)\.(\d+)\.(?:self_)?(attn|mlp)\.(\w+)$")
Shapes = Mapping[str, tuple[int, ...]]  # of a layer's weights, by their names in files


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """What a file's header says: its kind ("lora", "loha", "lokr"), shapes, ranks and alphas by
    kohya's layer names, the number of its parameters and of its text encoder layers.

    An alpha that is not stored is the rank.
    """

    path: Path
    kind: str
    shapes: Mapping[str, Shapes]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    parameters: int
    text_encoder_layers: int

    @property
    def is_dora(self) -> bool:
        return any(DORA_SCALE in parts for parts in self.shapes.values())

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
    path = expand_user(name)
    if path.name == name:
        loras = (file for file in lora_files(lora_dir) if file.match("*.safetensors"))
        for file in sorted(loras):
            if name in (file.stem, file.name):
                return file
    if path.is_file():
        return path
    raise Refused(
        f"There is no LoRA {name!r} to go on from, neither as a file nor in {lora_dir}.",
        field="init_lora",
        code=ErrorCode.NO_LORA,
    )


def inspect_lora(path: Path) -> LoraFile:
    """Read a file's kind, layers, ranks and alphas; raises `Refused` for one that is damaged or
    none of the kinds in kohya's layout.

    A file that has not changed is not read again: a page asks with every key press.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _inspect(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _inspect(path: Path, size_bytes: int, changed_ns: int) -> LoraFile:
    layers, alphas = _read_layers(path)
    kind = _kind_of(layers)
    _check_layout(path, layers, alphas, kind)
    _check_dora(path, layers)
    ranks = {layer: _rank(shapes, alphas.get(layer)) for layer, shapes in layers.items()}
    return LoraFile(
        path,
        kind,
        layers,
        ranks,
        {layer: alphas.get(layer, float(rank)) for layer, rank in ranks.items()},
        sum(math.prod(shape) for shapes in layers.values() for shape in shapes.values()),
        sum(layer.startswith(tuple(_TEXT_ENCODERS)) for layer in layers),
    )


def _read_layers(path: Path) -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, float]]:
    """Return the shapes of each layer's weights and the alphas that are stored, by layer name."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    try:
        header = read_header(path)
        for name, shape in header.shapes.items():
            layer, _, part = name.partition(".")
            layers.setdefault(layer, {})[part] = shape
        with_alpha = [layer for layer, shapes in layers.items() if _ALPHA in shapes]
        alphas = _read_alphas(path, header, with_alpha)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    for shapes in layers.values():
        shapes.pop(_ALPHA, None)
    return layers, alphas


def _kind_of(layers: Mapping[str, Shapes]) -> str:
    for kind, names in _WEIGHT_NAMES.items():
        if any(names[0] in shapes or names[1] in shapes for shapes in layers.values()):
            return kind
    return "lora"


def _check_layout(
    path: Path, layers: Mapping[str, Shapes], alphas: Mapping[str, float], kind: str
) -> None:
    problem = _layout_problem(layers, kind)
    if not problem:
        infinite = [layer for layer, alpha in alphas.items() if not math.isfinite(alpha)]
        problem = f"{infinite[0]}.{_ALPHA} is {alphas[infinite[0]]}" if infinite else ""
    if problem:
        raise _refused(
            f"{path.name} is not a LoRA that can be gone on from ({problem}). It must be a LoRA,"
            " LoHa or LoKr in kohya's layout; mixtures and full models are not."
        )


def _check_dora(path: Path, layers: Mapping[str, Shapes]) -> None:
    for layer, shapes in layers.items():
        if DORA_SCALE in shapes and shapes[DORA_SCALE][0] != 1:
            raise _refused(
                f"{path.name} is a DoRA whose magnitudes are those of the outputs"
                f" ({layer}.{DORA_SCALE} is {shapes[DORA_SCALE]}; LyCORIS's wd_on_output, or"
                " peft's). Here, as in the WebUI, they are those of the inputs, (1, inputs), so it"
                " cannot be gone on from."
            )


def _read_alphas(path: Path, header: Header, layers: list[str]) -> dict[str, float]:
    """Read the alphas of these layers; raises ValueError for one that is not one number."""
    for layer in layers:
        if math.prod(header.entries[f"{layer}.{_ALPHA}"].shape) != 1:
            raise ValueError(f"{layer}.{_ALPHA} is not one number")
    with open(path, "rb") as file:
        return {layer: float(read_tensor(file, header, f"{layer}.{_ALPHA}")) for layer in layers}


def fit_to_model(
    found: LoraFile, parts: torch.nn.ModuleDict, export_name: Callable[[str], str]
) -> tuple[dict[str, RankAlpha], Weights, AdapterSpec]:
    """Match a file's layers with the model's: ranks and alphas and float32 weights by path, and how
    the layers are built. Raises `Refused` for a file that does not fit.

    Layers of a text encoder are left out where `parts` has none.
    """
    modules = _modules_by_path(parts)
    layers = _layers_by_path(found, parts, modules, export_name)
    spec = _infer_spec(found, {layer: modules[path].weight for path, layer in layers.items()})
    rank_alphas: dict[str, RankAlpha] = {}
    weights: Weights = {}
    with _opened(found.path) as file:
        header = _read_header_again(found, file)
        # In the model's order, as without a file.
        for path in [path for path in modules if path in layers]:
            layer = layers[path]
            rank_alphas[path] = RankAlpha(found.ranks[layer], found.alphas[layer])
            expected = weight_shapes(modules[path].weight, found.ranks[layer], spec)
            weights[path] = {
                part: _read_weight(found, layer, part, shape, (header, file))
                for part, shape in expected.items()
            }
    return rank_alphas, weights, spec


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file; where it cannot be opened or read inside, raise `Refused`."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


def _layers_by_path(
    found: LoraFile,
    parts: torch.nn.ModuleDict,
    modules: Mapping[str, "_Module"],
    export_name: Callable[[str], str],
) -> dict[str, str]:
    """Return the file's layer names by the paths of the modules that they change."""
    has_text_encoder = any(part != "unet" for part in parts)
    used = [
        layer
        for layer in found.ranks
        if has_text_encoder or not layer.startswith(tuple(_TEXT_ENCODERS))
    ]
    paths = _paths_by_name(modules, export_name)
    if unknown := [layer for layer in used if layer not in paths]:
        raise _misfit(
            found, f"has {len(unknown)} layers that this checkpoint lacks (first: {unknown[0]})"
        )
    layers = {paths[layer]: layer for layer in used}
    for path, module in modules.items():
        if path in layers and any(sibling not in layers for sibling in module.siblings):
            raise _misfit(
                found, f"changes {layers[path]}, but not all of the attention that it is part of"
            )
    return layers


def _read_header_again(found: LoraFile, file: BinaryIO) -> Header:
    """Read the header of the open file and check it: the file may have been replaced since it was
    inspected.
    """
    try:
        header = parse_header(file, file_bytes=os.fstat(file.fileno()).st_size)
    except ValueError as error:
        raise _unreadable(found.path, error) from error
    for layer, shapes in found.shapes.items():
        if any(header.shapes.get(f"{layer}.{part}") != shape for part, shape in shapes.items()):
            raise _refused(f"The LoRA {found.path.name} was changed in the meantime. Start again.")
    return header


def _layout_problem(layers: Mapping[str, Shapes], kind: str) -> str:
    """Return what makes these layers none of that kind, or ""."""
    for layer, shapes in layers.items():
        if strange := sorted(shapes.keys() - {*_WEIGHT_NAMES[kind], DORA_SCALE}):
            return f"{layer}.{strange[0]}"
        if missing := _missing_weight(shapes, kind):
            return f"{layer}.{missing} is missing"
        for name, shape in shapes.items():
            if len(shape) < 2 or not math.prod(shape):
                return f"{layer}.{name} is {shape}"
    return "" if layers else "it is empty"


def _missing_weight(shapes: Shapes, kind: str) -> str:
    """Return the first weight that a layer of this kind lacks, or ""."""
    needed: list[str] = []
    if kind == "lokr":
        for matrix in ("lokr_w1", "lokr_w2"):
            if matrix not in shapes:
                needed += [f"{matrix}_a", f"{matrix}_b"]
    elif ("hada_t1" in shapes) == ("hada_t2" in shapes):
        needed += _WEIGHT_NAMES[kind][:4]
    else:
        needed += LOHA_NAMES
    return next((name for name in needed if name not in shapes), "")


def _rank(shapes: Shapes, alpha: float | None) -> int:
    """Return a layer's rank.

    A LoKr of two full matrices has none: LyCORIS keeps it as alpha, and any that is large enough
    means the same.
    """
    if not is_full_lokr(shapes):
        names = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        return next(shapes[name][0] for name in names if name in shapes)
    sides = [side for name in ("lokr_w1", "lokr_w2") for side in shapes[name][:2]]
    least = max(1, *(-(-side // 2) for side in sides))
    if alpha and math.isfinite(alpha) and alpha == int(alpha) and alpha >= least:
        return int(alpha)
    return least


def _infer_spec(found: LoraFile, weights: Mapping[str, torch.Size]) -> AdapterSpec:
    """Return how the layers of a file were built; `weights` are the shapes of the base's weights by
    layer name.
    """
    names = {part for layer in weights for part in found.shapes[layer]}
    return AdapterSpec(
        found.kind,
        tucker=bool(names & {"hada_t1", "lokr_t2"}),
        lokr_both="lokr_w1_a" in names,
        use_dora=DORA_SCALE in names,
        lokr_factor=_infer_lokr_factor(found, weights) if found.kind == "lokr" else -1,
    )


def _infer_lokr_factor(found: LoraFile, weights: Mapping[str, torch.Size]) -> int:
    """Return the factor that splits all weights as the file's LoKr layers are split."""
    first = {layer: _first_matrix(found.shapes[layer]) for layer in weights}
    for layer, weight in weights.items():
        if any(whole % side for side, whole in zip(first[layer], weight, strict=False)):
            raise _misfit(
                found,
                f"cuts {layer} up into {first[layer]} and a rest, which"
                f" {tuple(weight[:2])} cannot be cut into",
            )
    sides = {side for shape in first.values() for side in shape}
    large = sorted(side for side in sides if side > _LARGEST_FACTOR)
    split = functools.cache(factorization)
    for factor in (-1, *range(1, _LARGEST_FACTOR + 1), *large):
        if all(
            (split(weight[0], factor)[0], split(weight[1], factor)[0]) == first[layer]
            for layer, weight in weights.items()
        ):
            return factor
    raise _misfit(found, "is a LoKr whose layers are not cut up by one common factor")


def _first_matrix(shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of a LoKr layer's W1, `(out_1, in_1)`."""
    return shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])


class _Module(NamedTuple):
    """A module that a file may change: its weight's shape and, for a projection of a
    `nn.MultiheadAttention`, the paths of all four.
    """

    weight: torch.Size
    siblings: tuple[str, ...] = ()


def _modules_by_path(parts: torch.nn.ModuleDict) -> dict[str, _Module]:
    """Return every module that a file may change."""
    targets = {path for path, _ in find_target_layers(parts, "all")}
    text = {path for path in targets if not path.startswith("unet.")}
    found: dict[str, _Module] = {}
    for path, module in parts.named_modules():
        if isinstance(module, torch.nn.MultiheadAttention) and f"{path}.{PROJECTIONS[0]}" in text:
            siblings = tuple(f"{path}.{name}" for name in PROJECTIONS)
            weight = module.out_proj.weight.shape
            found.update(dict.fromkeys(siblings, _Module(weight, siblings)))
        elif isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and (
            path.startswith("unet.") or path in text
        ):
            found.setdefault(path, _Module(module.weight.shape))
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
    """Yield the names that a module's layer has in kohya's layout, whatever names the host uses."""
    part, _, inside = path.partition(".")
    if part == "unet":
        yield from _unet_names(inside, levels)
    elif found := _TEXT_LAYER.search(inside):
        number, block, layer = found.groups()
        layer = {"c_fc": "fc1", "c_proj": "fc2"}.get(layer, layer)
        block = "self_attn" if block == "attn" else "mlp"
        for prefix in [prefix for prefix, encoder in _TEXT_ENCODERS.items() if encoder == part]:
            yield f"{prefix}text_model_encoder_layers_{number}_{block}_{layer}"


def _unet_names(inside: str, levels: int) -> Iterator[str]:
    to_diffusers = functools.partial(unet_to_diffusers, levels=levels)
    to_ldm = functools.partial(unet_to_ldm, levels=levels)
    for rename in (str, to_diffusers, to_ldm):
        with contextlib.suppress(KeyError):  # not a name of that layout
            yield "lora_unet_" + rename(inside).replace(".", "_")


def _read_weight(
    found: LoraFile,
    layer: str,
    part: str,
    shape: tuple[int, ...],
    source: tuple[Header, BinaryIO],
) -> torch.Tensor:
    """Read a weight, float32, in this shape: a 1x1 convolution's may be stored as a linear layer's,
    and the reverse.
    """
    header, file = source
    if part not in found.shapes[layer]:
        raise _misfit(
            found, f"builds {layer} in another way than its other layers: {part} is missing"
        )
    stored = found.shapes[layer][part]
    if math.prod(stored) != math.prod(shape):
        raise _misfit(found, f"has {layer}.{part} of {stored}; this checkpoint needs {shape}")
    try:
        weight = read_tensor(file, header, f"{layer}.{part}").float().reshape(shape)
    except ValueError as error:
        raise _unreadable(found.path, error) from error
    if not torch.isfinite(weight).all():
        raise _refused(
            f"{found.path.name}: {layer} holds numbers that are not finite. The file is spoiled."
        )
    return weight


def _misfit(found: LoraFile, what: str) -> Refused:
    return _refused(
        f"{found.path.name} {what}. It was made for another kind of model, or in a way that cannot"
        " be gone on from."
    )


def _unreadable(path: Path, error: Exception) -> Refused:
    return _refused(
        f"The LoRA {path.name} cannot be read: {error}. It may be damaged, or no .safetensors file."
    )


def _refused(sentence: str) -> Refused:
    return Refused(sentence, field="init_lora", code=ErrorCode.BAD_LORA)
