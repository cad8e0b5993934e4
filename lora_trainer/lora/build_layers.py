"""Builds the adapter layers of a run, of any kind, and knows beforehand which weights they will
have.
"""

from collections.abc import Mapping

import torch

from .adapter_layers import (
    DORA_SCALE,
    LORA_NAMES,
    AdapterLayer,
    AdapterSpec,
    Dropouts,
    RankAlpha,
)
from .loha_lokr import LohaLayer, LokrLayer, loha_shapes, lokr_shapes
from .lora_layer import build_lora_layers


def weight_shapes(weight: torch.Size, rank: int, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that a layer on a weight `(out, in[, k, k])` trains, by the names in
    files.
    """
    shapes = _factor_shapes(weight, rank, spec)
    if spec.use_dora:
        shapes[DORA_SCALE] = (1, weight[1], *[1] * len(weight[2:]))
    return shapes


def _factor_shapes(weight: torch.Size, rank: int, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    if spec.kind == "loha":
        return loha_shapes(weight, rank, tucker=spec.tucker)
    if spec.kind == "lokr":
        return lokr_shapes(weight, rank, spec)
    out, inputs, *kernel = weight
    down, up = (rank, inputs, *kernel), (out, rank, *[1] * len(kernel))
    return dict(zip(LORA_NAMES, (down, up), strict=True))


def build_layers(
    base_layers: Mapping[str, torch.nn.Module],
    rank_alphas: Mapping[str, RankAlpha],
    spec: AdapterSpec,
    dropouts: Dropouts,
) -> dict[str, AdapterLayer]:
    """Build an adapter layer around each Linear and Conv2d, by path; their change is 0 at first.

    Draws from torch's global generator, layer by layer; layers of the same rank and alpha follow
    each other, so that a seed always gives the same weights.
    """
    paths_by_rank: dict[RankAlpha, list[str]] = {}
    for path in base_layers:
        paths_by_rank.setdefault(rank_alphas[path], []).append(path)
    layers: dict[str, AdapterLayer] = {}
    for rank_alpha, paths in paths_by_rank.items():
        group = [base_layers[path] for path in paths]
        layers.update(zip(paths, _build_group(group, rank_alpha, spec, dropouts), strict=True))
    return {path: layers[path] for path in base_layers}


def _build_group(
    base_layers: list[torch.nn.Module],
    rank_alpha: RankAlpha,
    spec: AdapterSpec,
    dropouts: Dropouts,
) -> list[AdapterLayer]:
    if spec.kind == "lora":
        return [*build_lora_layers(base_layers, rank_alpha, spec, dropouts)]
    layer_class = LohaLayer if spec.kind == "loha" else LokrLayer
    layers: list[AdapterLayer] = []
    for base_layer in base_layers:
        assert isinstance(base_layer, (torch.nn.Linear, torch.nn.Conv2d))
        layers.append(layer_class(base_layer, rank_alpha, spec, dropouts))
    return layers
