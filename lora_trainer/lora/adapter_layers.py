"""What all adapter layers have in common: rank and alpha, how they are built (`AdapterSpec`), their
dropouts, their names in files, and the base class with DoRA (arXiv 2402.09353).

`lora_layer` and `loha_lokr` have the layers themselves; `build_layers` builds those of a run.
"""

import abc
import dataclasses
import math
from collections.abc import Iterable
from typing import TypeAlias

import torch

from ..base.autocast import no_autocast

DORA_SCALE = "dora_scale"
LORA_NAMES = ("lora_down.weight", "lora_up.weight")
LOHA_NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR_NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


@dataclasses.dataclass(frozen=True)
class RankAlpha:
    """Rank and alpha of one layer. Its change is scaled by alpha / rank, with rsLoRA by
    alpha / sqrt(rank).
    """

    rank: int
    alpha: float


Weights: TypeAlias = dict[str, dict[str, torch.Tensor]]
"""The tensors of layers, by path and by the name in files."""


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """How the layers of a run are built, the same for all of them. Written into training states.

    `lora`, `loha` and `lokr` are the kinds. `lokr_both` (LoKr's small factor is of low rank, too)
    and `tucker` (3x3 convolutions have a core tensor) are LyCORIS's options; only files that
    training goes on from have them. `use_dora` trains a magnitude for each input (arXiv
    2402.09353).
    """

    kind: str = "lora"
    rslora: bool = False
    lokr_factor: int = -1
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    lokr_both: bool = False
    tucker: bool = False
    use_dora: bool = False

    def scale(self, rank_alpha: RankAlpha, *, full_lokr: bool = False) -> float:
        """Return the factor of a layer's change.

        A LoKr of two full matrices (`full_lokr`) has no rank: its scale is 1, as in LyCORIS and the
        WebUI.
        """
        if full_lokr:
            return 1.0
        rank = rank_alpha.rank
        return rank_alpha.alpha / (math.sqrt(rank) if self.rslora else rank)


class Dropouts:
    """The dropouts of a run, shared by its layers: `enabled` switches all of them. Drawn from
    torch's global generators.
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self.input_rate = spec.dropout
        self.rank_rate = spec.rank_dropout
        self.module_rate = spec.module_dropout
        self.enabled = True

    def drops_module(self) -> bool:
        """Draw whether a whole layer is left out of this forward pass."""
        return self.enabled and self.module_rate > 0 and bool(torch.rand(1) < self.module_rate)

    def drop_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply ordinary dropout to a layer's inputs, of any shape."""
        if not (self.enabled and self.input_rate):
            return inputs
        return torch.nn.functional.dropout(inputs, self.input_rate)

    def rank_mask(self, *shape: int, device: torch.device) -> torch.Tensor | None:
        """Draw a mask of this shape: 0 for dropped ranks, 1 / (1 - rate) for the others. None
        without rank dropout.
        """
        if not (self.enabled and self.rank_rate):
            return None
        return (torch.rand(shape, device=device) >= self.rank_rate) / (1 - self.rank_rate)


class AdapterLayer(torch.nn.Module, abc.ABC):
    """A layer in the place of a Linear or Conv2d: the base's output plus that of a trained change.

    Factors are float32 on the base's device. `scale` is the factor of the change. `dora_scale`,
    with DoRA only, are the magnitudes, `(1, in)` or `(1, in, 1, 1)`.
    """

    base_layer: torch.nn.Linear | torch.nn.Conv2d
    scale: float
    dropouts: Dropouts
    dora_scale: torch.nn.Parameter | None

    def __init__(
        self,
        base_layer: torch.nn.Linear | torch.nn.Conv2d,
        *,
        scale: float,
        dropouts: Dropouts,
        use_dora: bool,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = scale
        self.dropouts = dropouts
        self.dora_scale = None
        if use_dora:
            self.dora_scale = torch.nn.Parameter(column_norms(base_layer.weight.detach().float()))

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight, which hosts ask for its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """The base's inputs, as peft's layers tell them too; hosts measure a model by it."""
        base = self.base_layer
        return base.in_features if isinstance(base, torch.nn.Linear) else base.in_channels

    @property
    def out_features(self) -> int:
        """The base's outputs."""
        base = self.base_layer
        return base.out_features if isinstance(base, torch.nn.Linear) else base.out_channels

    @abc.abstractmethod
    def factors(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters whose product is the change, by their names in files."""

    @abc.abstractmethod
    def change(self, *, dropouts: Dropouts | None) -> torch.Tensor:
        """Return the scaled change in the base weight's shape, float32; the rank and input dropouts
        are those given.
        """

    @abc.abstractmethod
    def change_norm(self) -> torch.Tensor:
        """Return the Frobenius norm of the scaled change, without building it where that can be
        avoided.
        """

    @abc.abstractmethod
    def forward_adapted(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the base's output plus the change's, without DoRA."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Take `(..., in)` to `(..., out)`, or `(batch, in, h, w)` to `(batch, out, h', w')`.

        With DoRA the inputs are multiplied by their factors: (W + change) diag(f) x, so that the
        weight need not be built.
        """
        if self.dora_scale is not None:
            inputs = (inputs * self.dora_factors(self.base_layer.weight)).to(inputs.dtype)
        return self.forward_adapted(inputs)

    def set_base_layer(self, base_layer: torch.nn.Linear | torch.nn.Conv2d) -> None:
        """Put the layer around another base layer of the same shape."""
        self.base_layer = base_layer

    def trained_weights(self) -> dict[str, torch.nn.Parameter]:
        """Return all parameters of the layer by their names in files."""
        if self.dora_scale is None:
            return self.factors()
        return {**self.factors(), DORA_SCALE: self.dora_scale}

    def delta_weight(self, *, dropouts: Dropouts | None = None) -> torch.Tensor:
        """Return what is added to the base's weight: scaled, float32, in the weight's shape,
        differentiable; without DoRA's magnitudes (see `changed_weight`).

        With `dropouts`, ranks, inputs or the whole layer are dropped as these draw it.
        """
        if dropouts and dropouts.drops_module():
            device = next(iter(self.factors().values())).device
            return torch.zeros(self.base_layer.weight.shape, device=device)
        return self.change(dropouts=dropouts)

    def changed_weight(
        self, weight: torch.Tensor, *, dropouts: Dropouts | None = None
    ) -> torch.Tensor:
        """Return `weight`, the base's, as the layer changes it, in its dtype; differentiable."""
        changed = weight.float() + self.delta_weight(dropouts=dropouts)
        if self.dora_scale is not None:
            changed = changed * self.dora_factors(weight)
        return changed.to(weight.dtype)

    def dora_factors(self, weight: torch.Tensor) -> torch.Tensor:
        """Return DoRA's factor of each input, m / |W + change| (arXiv 2402.09353, eq. 5): float32,
        `(1, in)` or `(1, in, 1, 1)`.

        The paper's columns are the inputs, as in the WebUI's loader and in LyCORIS's first files;
        peft's `use_dora` takes rows, which the WebUI would read as another change. The norm is a
        constant to the gradient (section 4.3).
        """
        assert self.dora_scale is not None
        with torch.no_grad(), no_autocast(weight.device):
            norms = column_norms(weight.float() + self.delta_weight())
        return self.dora_scale / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def column_norms(weight: torch.Tensor) -> torch.Tensor:
    """Return the norm of each input's column, `(1, in)` or `(1, in, 1, 1)`.

    Added up in the WebUI's order, so that not even a rounding differs.
    """
    norms = weight.transpose(0, 1).flatten(1).norm(dim=1)
    return norms.reshape(1, -1, *[1] * (weight.dim() - 2))


def is_full_lokr(names: Iterable[str]) -> bool:
    """Tell whether weights of these names are a LoKr of two full matrices, which has no rank."""
    return "lokr_w1" in names and "lokr_w2" in names
