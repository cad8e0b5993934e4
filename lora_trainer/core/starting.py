"""Going on from an existing LoRA: reads kohya's layout, ours or another trainer's, and fits it to the UNet's layers."""
import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import torch

from .adapters import Shape
from .errors import Refused
from .layouts import unet_to_diffusers, unet_to_ldm
from .paths import expanded

_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_TEXT_ENCODERS = ("lora_te_", "lora_te1_", "lora_te2_")
Weights = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class FoundLora:
    """What the header of a LoRA file says: `ranks` and `alphas` by kohya's layer names (no alpha stored: the rank), how many numbers the UNet's
    layers have, and how many layers are not for the UNet."""
    path: Path
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    parameters: int
    text_encoder_layers: int

    @property
    def rank(self) -> int:
        return Counter(self.ranks.values()).most_common(1)[0][0]

    @property
    def alpha(self) -> float:
        return Counter(self.alphas.values()).most_common(1)[0][0]


def find_lora(name: str, lora_dir: Path) -> Path:
    """Return the file of a LoRA given by its name in the LoRA folder or by path; raises `Refused`."""
    path = expanded(name)
    listed = sorted(lora_dir.rglob("*.safetensors")) if path.name == name and lora_dir.is_dir() else []
    found = next((file for file in listed if name in (file.stem, file.name)), path if path.is_file() else None)
    if found is None:
        raise Refused(f"There is no LoRA {name!r} to go on from, neither as a file nor in {lora_dir}.", field="init_lora", code="no_lora")
    return found


def look_into(path: Path) -> FoundLora:
    """Read a LoRA's layers, ranks and alphas; raises `Refused` for a file that is damaged or no LoRA of kohya's layout."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
            sizes = {name: file.get_slice(name).get_shape() for name in names}
            layers = {name.removesuffix(_DOWN): size[0] for name, size in sizes.items() if name.endswith(_DOWN)}
            alphas = {layer: float(file.get_tensor(layer + _ALPHA)) if layer + _ALPHA in names else float(rank) for layer, rank in layers.items()}
    except (OSError, safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise Refused(f"The LoRA {path.name} cannot be read: {error}. It may be damaged, or no .safetensors file.", field="init_lora", code="bad_lora") from error
    ranks = {layer: rank for layer, rank in layers.items() if not layer.startswith(_TEXT_ENCODERS)}
    strange = sorted(set(names) - {layer + part for layer in layers for part in (_DOWN, _UP, _ALPHA)})
    missing = [layer for layer in layers if layer + _UP not in names]
    if not ranks or strange or missing:
        odd = next(iter(strange or [layer + _UP + " is missing" for layer in missing] or ["no layer of the UNet"]))
        raise Refused(f"{path.name} is not a LoRA that can be gone on from ({odd}). It must be in kohya's layout; LoHa, LoKr, DoRA and full models are not.",
                      field="init_lora", code="bad_lora")
    parameters = sum(math.prod(size) for name, size in sizes.items() if not name.startswith(_TEXT_ENCODERS) and not name.endswith(_ALPHA))
    return FoundLora(path, ranks, {layer: alphas[layer] for layer in ranks}, parameters, len(layers) - len(ranks))


def fit(found: FoundLora, unet: torch.nn.Module, export_name: Callable[[str], str]) -> tuple[dict[str, Shape], Weights]:
    """Match a file's layers with the UNet's: shapes and float32 weights by module path; raises `Refused` for one that does not fit."""
    paths = _paths_by_name(unet, export_name)
    if unknown := [layer for layer in found.ranks if layer not in paths]:
        raise Refused(f"{found.path.name} has {len(unknown)} layers that this checkpoint lacks (first: {unknown[0]}). It was made for another kind of model.",
                      field="init_lora", code="bad_lora")
    order = {path: number for number, (path, _) in enumerate(unet.named_modules())}
    shapes, weights = {}, {}
    with safetensors.safe_open(found.path, "pt") as file:
        for layer in sorted(found.ranks, key=lambda layer: order[paths[layer]]):   # as when they are made without a file
            path = paths[layer]
            shapes[path] = Shape(found.ranks[layer], found.alphas[layer])
            weights[path] = _fitting(found, layer, unet.get_submodule(path), file.get_tensor(layer + _DOWN), file.get_tensor(layer + _UP))
    return shapes, weights


def _paths_by_name(unet: torch.nn.Module, export_name: Callable[[str], str]) -> dict[str, str]:
    """Map every name that a layer may have in a file to its path: the name we export, diffusers' and the checkpoint's own."""
    names: dict[str, str] = {}
    for path, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            for rename in (str, unet_to_diffusers, unet_to_ldm):
                with contextlib.suppress(KeyError):                                # not a name of that layout
                    names["lora_unet_" + rename(path).replace(".", "_")] = path
            with contextlib.suppress(KeyError):
                names[export_name(path)] = path
    return names


def _fitting(found: FoundLora, layer: str, module: torch.nn.Module, down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both weights in the layer's own form: a 1x1 convolution's LoRA may be stored as a linear layer's, and the other way round."""
    out_features, in_features, *kernel = module.weight.shape
    rank = found.ranks[layer]
    wanted = ((rank, in_features, *kernel), (out_features, rank, *[1] * len(kernel)))
    if down.numel() != torch.Size(wanted[0]).numel() or up.numel() != torch.Size(wanted[1]).numel():
        raise Refused(f"{found.path.name}: {layer} is {tuple(down.shape)} and {tuple(up.shape)}; this checkpoint needs {wanted[0]} and {wanted[1]}. "
                      "It was made for another kind of model.", field="init_lora", code="bad_lora")
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise Refused(f"{found.path.name}: {layer} holds numbers that are not finite. The file is spoiled.", field="init_lora", code="bad_lora")
    return down.float().reshape(wanted[0]), up.float().reshape(wanted[1])
