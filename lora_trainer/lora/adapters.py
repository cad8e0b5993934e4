"""The adapter layers of one run on a model: attach, detach, and their weights.

`build_layers` builds a layer around each target. A slot keeps the parent module, the attribute, the
adapter layer and the original one, so attaching and detaching swap attributes: the original modules
stay as they are, and no weight of the base is touched. `multihead` does it for attention modules
that have no layers to swap.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch

from .adapter_layers import AdapterLayer, AdapterSpec, Dropouts, RankAlpha, Weights, is_full_lokr
from .build_layers import build_layers, weight_shapes
from .multihead import (
    MultiheadSlot,
    find_multiheads,
    forget_weight,
    parent_of,
    projection_layer,
)
from .target_layers import PROJECTIONS

LORA = AdapterSpec()


@dataclasses.dataclass(frozen=True)
class LayerSlot:
    """Where an adapter layer belongs: the attribute of a module that has the original layer."""

    path: str
    parent: torch.nn.Module
    attribute: str
    layer: AdapterLayer
    original: torch.nn.Module

    def attach(self) -> None:
        setattr(self.parent, self.attribute, self.layer)

    def detach(self) -> None:
        setattr(self.parent, self.attribute, self.original)

    def moved_to(self, parts: torch.nn.Module) -> "LayerSlot":
        """Return the slot of the same path in other parts; the layer then has their base layer."""
        slot = _slot(parts, self.path, self.layer)
        assert isinstance(slot.original, (torch.nn.Linear, torch.nn.Conv2d))
        self.layer.set_base_layer(slot.original)
        return slot


class Adapters:
    """The adapters of one run, by path. Made detached; `attached()` attaches them for a `with`."""

    def __init__(
        self,
        layers: dict[str, AdapterLayer],
        slots: list[LayerSlot | MultiheadSlot],
        rank_alphas: Mapping[str, RankAlpha],
        spec: AdapterSpec,
        dropouts: Dropouts,
    ) -> None:
        self._layers = layers
        self._slots = slots
        self._dropouts = dropouts
        self.rank_alphas = dict(rank_alphas)
        self.spec = spec

    @classmethod
    def create(
        cls,
        parts: torch.nn.Module,
        rank_alphas: Mapping[str, RankAlpha],
        spec: AdapterSpec = LORA,
        *,
        seed: int = 0,
    ) -> "Adapters":
        """Build float32 layers for the paths of `rank_alphas`; their change is 0 at first.

        Their initial weights depend on `seed` alone. Raises ValueError when there is no layer or
        only some projections of a `nn.MultiheadAttention`, AttributeError for a path that `parts`
        lack.
        """
        if not rank_alphas:
            raise ValueError("the model has no layer that could learn")
        multiheads = find_multiheads(parts, rank_alphas)
        base_layers = {path: _base_layer(parts, path, multiheads) for path in rank_alphas}
        dropouts = Dropouts(spec)
        with torch.random.fork_rng(devices=[]):
            # Drawn on the CPU; torch.manual_seed would reseed every GPU, too.
            torch.default_generator.manual_seed(seed)
            layers = build_layers(base_layers, rank_alphas, spec, dropouts)
        slots: list[LayerSlot | MultiheadSlot] = [
            _slot(parts, path, layer)
            for path, layer in layers.items()
            if parent_of(path) not in multiheads
        ]
        for path, module in multiheads.items():
            projections = tuple(layers[f"{path}.{name}"] for name in PROJECTIONS)
            for layer in projections:
                forget_weight(layer.base_layer)
            slots.append(MultiheadSlot(path, module, projections, dropouts))
        return cls(layers, slots, rank_alphas, spec, dropouts)

    def move_to(self, parts: torch.nn.Module) -> None:
        """Move to other parts with the same layers: the same base model, loaded anew. Only while
        detached.
        """
        self._slots = [slot.moved_to(parts) for slot in self._slots]

    def attach(self) -> None:
        for slot in self._slots:
            slot.attach()

    def detach(self) -> None:
        for slot in self._slots:
            slot.detach()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach for the time of a `with`; detaches in any case."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Switch dropouts off for the time of a `with`: for validation."""
        self._dropouts.enabled = False
        try:
            yield
        finally:
            self._dropouts.enabled = True

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return all trained parameters, layer by layer."""
        return [
            weight for layer in self._layers.values() for weight in layer.trained_weights().values()
        ]

    def named_parameters(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """Return the parameters by path and by the name in files, as `weights` does."""
        return {path: layer.trained_weights() for path, layer in self._layers.items()}

    def weights(self) -> Weights:
        """Return float32 copies of all weights on the CPU, by path and by the name in files.

        Their shapes are those of `LoraLayer`, `LohaLayer` and `LokrLayer`; with DoRA there is
        `dora_scale`, `(1, in[, 1, 1])`, too.
        """
        return {path: _on_cpu(weights) for path, weights in self.named_parameters().items()}

    def load(self, weights: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Take over what `weights()` gave.

        Raises ValueError unless the paths, names and shapes are those of these layers.
        """
        if weights.keys() != self.rank_alphas.keys():
            differing = sorted(weights.keys() ^ self.rank_alphas.keys())
            raise ValueError(f"the layers differ: {differing[:3]}")
        parameters = self.named_parameters()
        for path, own in parameters.items():
            found, expected = _shapes_of(weights[path]), _shapes_of(own)
            if found != expected:
                raise ValueError(f"{path} is {expected}, not {found}")
        with torch.no_grad():
            for path, own in parameters.items():
                for name, parameter in own.items():
                    parameter.copy_(weights[path][name])

    @property
    def alphas(self) -> dict[str, float]:
        """The alpha of each layer in a file, where the scale is always alpha / rank."""
        return {path: self._alpha_in_file(path) for path in self.rank_alphas}

    def _alpha_in_file(self, path: str) -> float:
        rank_alpha = self.rank_alphas[path]
        if is_full_lokr(self._layers[path].factors()):
            return float(rank_alpha.rank)
        return rank_alpha.alpha * (math.sqrt(rank_alpha.rank) if self.spec.rslora else 1)

    def are_finite(self) -> bool:
        """Tell whether all parameters are finite numbers."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters())

    @torch.no_grad()
    def limit_norms(self, max_norm: float) -> int:
        """Scale down the layers whose scaled change has a larger norm, and return how many.

        All factors of a layer shrink alike, as with kohya's `scale_weight_norms`. DoRA's magnitudes
        are not part of the norm.
        """
        layers = list(self._layers.values())
        norms = [layer.change_norm() for layer in layers]
        # One transfer from the device, not one a layer.
        values = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist()
        too_large = [
            (layer, max_norm / norm)
            for layer, norm in zip(layers, values, strict=True)
            if norm > max_norm
        ]
        for layer, ratio in too_large:
            factors = layer.factors().values()
            for factor in factors:
                factor.mul_(ratio ** (1 / len(factors)))
        return len(too_large)


def count_parameters(
    parts: torch.nn.Module, rank_alphas: Mapping[str, RankAlpha], spec: AdapterSpec
) -> int:
    """Return how many numbers a run would train, without building a layer."""
    multiheads = find_multiheads(parts, rank_alphas)
    count = 0
    for path, rank_alpha in rank_alphas.items():
        parent = parent_of(path)
        layer = multiheads[parent].out_proj if parent in multiheads else parts.get_submodule(path)
        assert isinstance(layer.weight, torch.Tensor)
        shapes = weight_shapes(layer.weight.shape, rank_alpha.rank, spec)
        count += sum(math.prod(shape) for shape in shapes.values())
    return count


def _base_layer(
    parts: torch.nn.Module, path: str, multiheads: Mapping[str, torch.nn.MultiheadAttention]
) -> torch.nn.Module:
    parent = parent_of(path)
    if parent in multiheads:
        return projection_layer(multiheads[parent], path)
    return parts.get_submodule(path)


def _slot(parts: torch.nn.Module, path: str, layer: AdapterLayer) -> LayerSlot:
    parent, _, attribute = path.rpartition(".")
    original = parts.get_submodule(path)
    return LayerSlot(path, parts.get_submodule(parent), attribute, layer, original)


def _on_cpu(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach().to("cpu", torch.float32, copy=True)
        for name, weight in weights.items()
    }


def _shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
