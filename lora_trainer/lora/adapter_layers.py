"""The kinds of adapter layer, built by peft around one given layer each: LoRA (arXiv 2106.09685),
LoHa (arXiv 2108.06098), LoKr (arXiv 2309.14859).

What is ours in them: one meaning of scale and dropouts for all kinds and all versions of peft, DoRA
(arXiv 2402.09353) on top of any of them, and the names that weights have in files.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.loha import LoHaModel
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import LoKrModel
from peft.tuners.lokr import layer as lokr

ADAPTER = "default"
DORA_SCALE = "dora_scale"
LORA_NAMES = {"lora_down.weight": "lora_A", "lora_up.weight": "lora_B"}
LOHA_NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR_NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


@dataclasses.dataclass(frozen=True)
class RankAlpha:
    """Rank and alpha of one layer; what it adds is scaled by alpha / rank, or alpha / sqrt(rank)
    where the form says so.
    """

    rank: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """What all layers of a run have in common: how their change is built from few numbers, and what
    is left out of it at random while learning.

    `lokr_both` and `tucker` are ways of LyCORIS that files may have: LoKr's small factor is of low
    rank too; 3x3 convolutions have a core tensor. `use_dora`: what each input counts is learned by
    itself, beside the directions that the change turns it to.
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

    def scale(self, shape: RankAlpha, *, whole: bool = False) -> float:
        """Return what a layer's change is multiplied by; `whole`: a LoKr of two full matrices has
        no rank and, as in LyCORIS and the WebUI, the scale 1.
        """
        if whole:
            return 1.0
        return shape.alpha / (math.sqrt(shape.rank) if self.rslora else shape.rank)


class Dropouts:
    """What is left out at random; one for all layers of a run, so that `active` switches them all.
    Draws come from torch's global generators.
    """

    def __init__(self, form: AdapterSpec) -> None:
        self.inputs, self.ranks, self.layers, self.active = (
            form.dropout,
            form.rank_dropout,
            form.module_dropout,
            True,
        )

    def leaves_out_layer(self) -> bool:
        return self.active and self.layers > 0 and bool(torch.rand(1) < self.layers)

    def of_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        return (
            torch.nn.functional.dropout(inputs, self.inputs)
            if self.active and self.inputs
            else inputs
        )

    def of_ranks(self, *shape: int, device: torch.device) -> torch.Tensor | None:
        """Return 0 for what is left out and 1 / (1 - rate) for the rest; None when nothing ever
        is.
        """
        return (
            (torch.rand(shape, device=device) >= self.ranks) / (1 - self.ranks)
            if self.active and self.ranks
            else None
        )


def weight_shapes(weight: torch.Size, rank: int, form: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Return the size of everything that a layer of this weight learns, by the names that the file
    uses.
    """
    magnitudes = {DORA_SCALE: (1, weight[1], *[1] * len(weight[2:]))} if form.use_dora else {}
    return {**_sizes_of_change(weight, rank, form), **magnitudes}


def _sizes_of_change(
    weight: torch.Size, rank: int, form: AdapterSpec
) -> dict[str, tuple[int, ...]]:
    out, inputs, *kernel = weight
    area = math.prod(kernel)
    tucker = form.tucker and area > 1
    if form.kind == "lora":
        return {
            "lora_down.weight": (rank, inputs, *kernel),
            "lora_up.weight": (out, rank, *[1] * len(kernel)),
        }
    if form.kind == "loha":
        names = LOHA_NAMES if tucker else LOHA_NAMES[:4]
        a, b, core = (
            ((rank, out), (rank, inputs), (rank, rank, *kernel))
            if tucker
            else ((out, rank), (rank, inputs * area), ())
        )
        return dict(zip(names, (a, b, a, b, core, core), strict=False))
    (out_1, out_2), (in_1, in_2) = (
        lokr.factorization(out, form.lokr_factor),
        lokr.factorization(inputs, form.lokr_factor),
    )
    small = (
        {"lokr_w1_a": (out_1, rank), "lokr_w1_b": (rank, in_1)}
        if form.lokr_both and rank < max(out_1, in_1) / 2
        else {"lokr_w1": (out_1, in_1)}
    )
    if rank >= max(out_2, in_2) / 2:
        return {**small, "lokr_w2": (out_2, in_2, *kernel)}
    if tucker:
        return {
            **small,
            "lokr_w2_a": (rank, out_2),
            "lokr_w2_b": (rank, in_2),
            "lokr_t2": (rank, rank, *kernel),
        }
    return {**small, "lokr_w2_a": (out_2, rank), "lokr_w2_b": (rank, in_2 * area)}


def weights_of(layer: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return what a layer learns by the names that the file uses."""
    magnitudes = {DORA_SCALE: layer.dora_scale} if hasattr(layer, DORA_SCALE) else {}
    return {**factors_of(layer), **magnitudes}


def factors_of(layer: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return what a layer's change is a product of, by the names that the file uses."""
    if hasattr(layer, "lora_A"):
        return {name: getattr(layer, ours)[ADAPTER].weight for name, ours in LORA_NAMES.items()}
    return {
        name: getattr(layer, name)[ADAPTER]
        for name in LOHA_NAMES + LOKR_NAMES
        if ADAPTER in getattr(layer, name, ())
    }


def is_whole(names: Iterable[str]) -> bool:
    """Tell whether weights of these names are a LoKr of two full matrices."""
    return "lokr_w1" in names and "lokr_w2" in names


def delta_weight(layer: torch.nn.Module, *, dropouts: Dropouts | None = None) -> torch.Tensor:
    """Return what is added to a layer's weight, scaled, float32, in the weight's shape;
    differentiable. What `dropouts` says is left out. DoRA's magnitudes are not in it: see
    `changed_weight`.
    """
    if dropouts and dropouts.leaves_out_layer():
        return torch.zeros(
            layer.base_layer.weight.shape, device=next(iter(factors_of(layer).values())).device
        )
    return (
        _lora_delta(layer, dropouts) if hasattr(layer, "lora_A") else _whole_delta(layer, dropouts)
    )


def changed_weight(
    layer: torch.nn.Module, weight: torch.Tensor, *, dropouts: Dropouts | None = None
) -> torch.Tensor:
    """Return the base's `weight` as a layer changes it, in its type; differentiable."""
    changed = weight.float() + delta_weight(layer, dropouts=dropouts)
    return (changed * dora_factors(layer, weight) if hasattr(layer, DORA_SCALE) else changed).to(
        weight.dtype
    )


def dora_factors(layer: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Return what DoRA multiplies each input with, float32 `(1, in)` or `(1, in, 1, 1)`: m / |W +
    change| by columns (arXiv 2402.09353, eq. 5).

    The paper's columns are the inputs, as in the WebUI's loader and in LyCORIS's first files;
    peft's `use_dora` takes rows instead, which the WebUI would read as another change. The norm is
    a constant to the gradient (section 4.3).
    """
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        norms = _column_norms(weight.float() + delta_weight(layer))
    return layer.dora_scale / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def _column_norms(weight: torch.Tensor) -> torch.Tensor:
    """Return the norm of what belongs to each input, in the WebUI's order of adding up, so that not
    even a rounding differs.
    """
    return weight.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.dim() - 2))


def delta_norm(layer: torch.nn.Module) -> torch.Tensor:
    """Return the Frobenius norm of a layer's change, scaled, without building it where that can be
    done: |BA|^2 = tr(B'B AA'), |X kron Y| = |X||Y|.
    """
    weights, scale = factors_of(layer), layer.scaling[ADAPTER]
    if hasattr(layer, "lora_A"):
        down, up = (weight.flatten(1) for weight in weights.values())
        return ((up.mT @ up) * (down @ down.mT)).sum().clamp(min=0).sqrt() * scale
    if "hada_w1_a" in weights:
        return torch.linalg.vector_norm(delta_weight(layer))
    first, second = _lokr_factors(layer)
    return torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second) * scale


def build(
    originals: Mapping[str, torch.nn.Module],
    shapes: Mapping[str, RankAlpha],
    form: AdapterSpec,
    dropouts: Dropouts,
) -> dict[str, torch.nn.Module]:
    """Return a peft layer around each of the Linear and Conv2d layers, neutral at first, learning
    in float32; draws from torch's global generator.

    peft works on a container of its own, so the model that the layers are part of is not touched,
    and parameters keep their requires_grad.
    """
    alike: dict[RankAlpha, list[str]] = {}
    for path in originals:
        alike.setdefault(shapes[path], []).append(path)
    layers = {}
    for shape, paths in alike.items():
        holder = torch.nn.ModuleList([originals[path] for path in paths])
        flags = [(parameter, parameter.requires_grad) for parameter in holder.parameters()]
        try:
            _inject(holder, shape, form)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        layers.update(zip(paths, holder, strict=False))
    for path, layer in layers.items():
        _make_ours(layer, form.scale(shapes[path], whole=is_whole(weights_of(layer))), dropouts)
        if form.use_dora:
            layer.dora_scale = torch.nn.Parameter(
                _column_norms(layer.base_layer.weight.detach().float())
            )
            layer.register_forward_pre_hook(_scale_inputs)
    return {path: layers[path] for path in originals}


def _inject(holder: torch.nn.ModuleList, shape: RankAlpha, form: AdapterSpec) -> None:
    here = r"\d+"
    if form.kind == "lora":
        inject_adapter_in_model(
            LoraConfig(
                r=shape.rank, lora_alpha=shape.alpha, lora_dropout=form.dropout, target_modules=here
            ),
            holder,
            ADAPTER,
        )
    elif form.kind == "loha":
        _LoHaModel(
            holder,
            LoHaConfig(
                r=shape.rank,
                alpha=shape.alpha,
                use_effective_conv2d=form.tucker,
                target_modules=here,
            ),
            ADAPTER,
        )
    else:
        _LoKrModel(
            holder,
            LoKrConfig(
                r=shape.rank,
                alpha=shape.alpha,
                use_effective_conv2d=form.tucker,
                decompose_both=form.lokr_both,
                decompose_factor=form.lokr_factor,
                target_modules=here,
            ),
            ADAPTER,
        )


def _make_ours(layer: torch.nn.Module, scale: float, dropouts: Dropouts) -> None:
    """Set what peft sets otherwise, or otherwise in each version: type, scale, dropouts."""
    for parameter in weights_of(layer).values():
        parameter.data = parameter.data.float()
    layer.scaling[ADAPTER] = scale
    layer.cast_input_dtype_enabled = False  # autocast casts once; peft would go by way of fp32
    if not hasattr(layer, "lora_A"):
        layer.dropouts = dropouts
        return
    if dropouts.inputs:
        layer.lora_dropout[ADAPTER] = _InputDropout(dropouts)
    if dropouts.ranks:
        layer.lora_A[ADAPTER].register_forward_hook(functools.partial(_leave_out_ranks, dropouts))
    if dropouts.layers:
        layer.lora_B[ADAPTER].register_forward_hook(functools.partial(_leave_out_layer, dropouts))


def _scale_inputs(layer: torch.nn.Module, inputs: tuple) -> tuple:
    """Give a DoRA layer its inputs times their factors: (W + change) diag(f) x, without building
    the weight.
    """
    first, *others = inputs
    return ((first * dora_factors(layer, layer.base_layer.weight)).to(first.dtype), *others)


# --- LoRA: peft's own layers ----------------------------------------------------------------------


class _InputDropout(torch.nn.Module):
    def __init__(self, dropouts: Dropouts) -> None:
        super().__init__()
        self._dropouts = dropouts

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._dropouts.of_inputs(inputs)


def _leave_out_ranks(
    dropouts: Dropouts, down: torch.nn.Module, inputs: tuple, output: torch.Tensor
) -> torch.Tensor | None:
    """Leave out ranks, others for each picture, and scale up the rest, as kohya's rank_dropout:
    output is `(batch, …, rank)` or `(batch, rank, h, w)`.

    Older open_clip computes in `(tokens, batch, width)`: in its MLPs it is others for each token,
    the same in all pictures, as with kohya's. The mean stays.
    """
    kept = dropouts.of_ranks(len(output), len(down.weight), device=output.device)
    if kept is None:
        return None
    return output * kept.to(output.dtype).reshape(
        (*kept.shape, 1, 1) if output.dim() == 4 else (len(kept), *[1] * (output.dim() - 2), -1)
    )


def _leave_out_layer(
    dropouts: Dropouts, up: torch.nn.Module, inputs: tuple, output: torch.Tensor
) -> torch.Tensor | None:
    return torch.zeros_like(output) if dropouts.leaves_out_layer() else None


def _lora_delta(layer: torch.nn.Module, dropouts: Dropouts | None) -> torch.Tensor:
    down, up = factors_of(layer).values()
    rows, columns = down.flatten(1), up.flatten(1)
    with torch.autocast(down.device.type, enabled=False):
        if dropouts:
            rows = rows * dropouts.of_inputs(torch.ones(1, rows.shape[1], device=rows.device))
            kept = dropouts.of_ranks(len(rows), 1, device=rows.device)
            rows = rows if kept is None else rows * kept
        return (columns @ rows * layer.scaling[ADAPTER]).reshape(len(up), *down.shape[1:])


# --- LoHa and LoKr: peft's layers, whose change is built as a whole -------------------------------


class _Whole:
    """A forward of ours: versions of peft differ in LoKr's scale (0.13 has none), in dropouts and
    in types.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        base, result = self.base_layer, self.base_layer(inputs)
        if self.dropouts.leaves_out_layer():
            return result
        change, inputs = _whole_delta(self, self.dropouts), self.dropouts.of_inputs(inputs)
        if isinstance(base, torch.nn.Conv2d):
            return result + torch.nn.functional.conv2d(
                inputs, change, None, base.stride, base.padding, base.dilation, base.groups
            ).to(result.dtype)
        return result + torch.nn.functional.linear(inputs, change).to(result.dtype)


class _LoHaLinear(_Whole, loha.Linear):
    pass


class _LoHaConv2d(_Whole, loha.Conv2d):
    pass


class _LoKrLinear(_Whole, lokr.Linear):
    pass


class _LoKrConv2d(_Whole, lokr.Conv2d):
    pass


class _LoHaModel(LoHaModel):
    layers_mapping = {torch.nn.Conv2d: _LoHaConv2d, torch.nn.Linear: _LoHaLinear}


class _LoKrModel(LoKrModel):
    layers_mapping = {torch.nn.Conv2d: _LoKrConv2d, torch.nn.Linear: _LoKrLinear}


def _whole_delta(layer: torch.nn.Module, dropouts: Dropouts | None) -> torch.Tensor:
    """Build the change in float32. Ranks are left out by rows, as LyCORIS does it, but so that the
    mean stays.
    """
    with torch.autocast(next(iter(factors_of(layer).values())).device.type, enabled=False):
        change = (
            layer.get_delta_weight(ADAPTER) if hasattr(layer, "hada_w1_a") else _lokr_delta(layer)
        )
        kept = (
            dropouts.of_ranks(len(change), *[1] * (change.dim() - 1), device=change.device)
            if dropouts
            else None
        )
        return change if kept is None else change * kept


def _lokr_delta(layer: torch.nn.Module) -> torch.Tensor:
    """Return scale * (W1 kron W2)."""
    return lokr.make_kron(*_lokr_factors(layer), layer.scaling[ADAPTER]).reshape(
        layer.base_layer.weight.shape
    )


def _lokr_factors(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W1 and W2, each whole or put together from products (arXiv 2309.14859)."""
    weights = factors_of(layer)
    first = (
        weights["lokr_w1"] if "lokr_w1" in weights else weights["lokr_w1_a"] @ weights["lokr_w1_b"]
    )
    if "lokr_w2" in weights:
        return first, weights["lokr_w2"]
    if "lokr_t2" in weights:
        return first, lokr.make_weight_cp(
            weights["lokr_t2"], weights["lokr_w2_a"], weights["lokr_w2_b"]
        )
    return first, weights["lokr_w2_a"] @ weights["lokr_w2_b"]
