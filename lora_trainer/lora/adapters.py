"""The adapter layers of one run on a model: attach, detach, and what they have learned.

`core.kinds` builds a layer around each target. We keep (parent, attribute, adapter layer, original
layer), so attaching and detaching are attribute swaps: the original module objects stay as they are
and no weight of the base is touched. A `nn.MultiheadAttention` has no layers that could be swapped;
while attached, its object has a `forward` that computes with changed weights.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping

import torch

from ..base.patching import replaced_forward
from .adapter_layers import (
    AdapterSpec,
    Dropouts,
    RankAlpha,
    build,
    changed_weight,
    delta_norm,
    factors_of,
    is_whole,
    weight_shapes,
    weights_of,
)
from .target_layers import PROJECTIONS


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The place of one adapter layer."""

    path: str
    parent: torch.nn.Module
    attribute: str
    adapter: torch.nn.Module
    original: torch.nn.Module

    def attach(self) -> None:
        setattr(self.parent, self.attribute, self.adapter)

    def detach(self) -> None:
        setattr(self.parent, self.attribute, self.original)

    def moved_to(self, parts: torch.nn.Module) -> "_Layer":
        place = _place(parts, self.path, self.adapter)
        self.adapter.base_layer = place.original
        return place


@dataclasses.dataclass(frozen=True)
class _Attention:
    """The place of the four adapter layers of a `nn.MultiheadAttention`, in the order of
    `PROJECTIONS`.
    """

    path: str
    module: torch.nn.MultiheadAttention
    adapters: tuple[torch.nn.Module, ...]
    dropouts: Dropouts
    attached: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def attach(self) -> None:
        self.attached.enter_context(
            replaced_forward(
                self.module, functools.partial(_attend, self.module, self.adapters, self.dropouts)
            )
        )

    def detach(self) -> None:
        self.attached.close()

    def moved_to(self, parts: torch.nn.Module) -> "_Attention":
        return dataclasses.replace(self, module=parts.get_submodule(self.path))


class Adapters:
    """The adapters of one run. Made detached; `attached()` puts them in for a while."""

    def __init__(
        self,
        layers: dict[str, torch.nn.Module],
        places: list[_Layer | _Attention],
        shapes: Mapping[str, RankAlpha],
        form: AdapterSpec,
        dropouts: Dropouts,
    ) -> None:
        self._layers, self._places, self._dropouts = layers, places, dropouts
        self.shapes, self.form = dict(shapes), form

    @classmethod
    def create(
        cls,
        parts: torch.nn.Module,
        shapes: Mapping[str, RankAlpha],
        form: AdapterSpec = AdapterSpec(),  # noqa: B008
        *,
        seed: int = 0,
    ) -> "Adapters":
        """Build float32 layers for the paths of `shapes`, neutral at first: the prediction is
        unchanged. What they begin with depends on `seed` alone.

        Raises ValueError when there is no layer or only some projections of a
        `nn.MultiheadAttention`, AttributeError for a path that `parts` lack.
        """
        if not shapes:
            raise ValueError("the model has no layer that could learn")
        attentions = _attentions(parts, shapes)
        originals = {
            path: (
                _projection(attentions[_above(path)], path)
                if _above(path) in attentions
                else parts.get_submodule(path)
            )
            for path in shapes
        }
        dropouts = Dropouts(form)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                seed
            )  # peft draws on the CPU; torch.manual_seed would reseed every GPU, too
            layers = build(originals, shapes, form, dropouts)
        places: list[_Layer | _Attention] = [
            _place(parts, path, layer)
            for path, layer in layers.items()
            if _above(path) not in attentions
        ]
        for path, module in attentions.items():
            of_it = tuple(layers[f"{path}.{name}"] for name in PROJECTIONS)
            for layer in of_it:  # the view of the weight would go stale when that moves
                layer.base_layer.weight = torch.nn.Parameter(
                    torch.empty_like(layer.base_layer.weight, device="meta"), requires_grad=False
                )
            places.append(_Attention(path, module, of_it, dropouts))
        return cls(layers, places, shapes, form, dropouts)

    def move_to(self, parts: torch.nn.Module) -> None:
        """Go over to other parts of the same layers: the same checkpoint, loaded anew into other
        objects. Only while detached.
        """
        self._places = [place.moved_to(parts) for place in self._places]

    def attach(self) -> None:
        for place in self._places:
            place.attach()

    def detach(self) -> None:
        for place in self._places:
            place.detach()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach for the time of a `with`, detaching whatever happens."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    @contextlib.contextmanager
    def nothing_left_out(self) -> Iterator[None]:
        """Switch dropouts off for the time of a `with`: for a loss that is only measured."""
        self._dropouts.active = False
        try:
            yield
        finally:
            self._dropouts.active = True

    def parameters(self) -> list[torch.nn.Parameter]:
        return [weight for layer in self._layers.values() for weight in weights_of(layer).values()]

    def named_parameters(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """Return the parameters by path and by the name in the file, as `weights` does."""
        return {path: weights_of(layer) for path, layer in self._layers.items()}

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return float32 copies on the CPU by path and by the name in the file: LoRA has
        `lora_down.weight` `(rank, in[, k, k])` and `lora_up.weight` `(out, rank[, 1, 1])`, LoHa
        `hada_w1_a` and so on, LoKr `lokr_w1` and so on; DoRA has `dora_scale` `(1, in[, 1, 1])`
        beside.
        """
        return {
            path: {
                name: weight.detach().to("cpu", torch.float32, copy=True)
                for name, weight in weights_of(layer).items()
            }
            for path, layer in self._layers.items()
        }

    def load(self, weights: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Take over what `weights` gave; raises ValueError unless they are those of these layers
        and of their shapes.
        """
        if weights.keys() != self.shapes.keys():
            raise ValueError(
                f"the layers differ: {sorted(weights.keys() ^ self.shapes.keys())[:3]}"
            )
        ours = {path: weights_of(layer) for path, layer in self._layers.items()}
        for path, parts in ours.items():
            if (found := _shapes_of(weights[path])) != (wanted := _shapes_of(parts)):
                raise ValueError(f"{path} is {wanted}, not {found}")
        with torch.no_grad():
            for path, parts in ours.items():
                for name, weight in parts.items():
                    weight.copy_(weights[path][name])

    @property
    def alphas(self) -> dict[str, float]:
        """The alpha of each layer as it is written into the file, where the scale is always alpha /
        rank.
        """
        return {
            path: (
                float(shape.rank)
                if is_whole(weights_of(self._layers[path]))
                else shape.alpha * (math.sqrt(shape.rank) if self.form.rslora else 1)
            )
            for path, shape in self.shapes.items()
        }

    def are_finite(self) -> bool:
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters())

    @torch.no_grad()
    def limit_norms(self, most: float) -> int:
        """Scale down layers whose change, scaled, has a larger norm than `most`, all their factors
        alike, as kohya and LyCORIS do after each step (`scale_weight_norms`); DoRA's magnitudes are
        not part of it. Returns how many.
        """
        norms = [delta_norm(layer) for layer in self._layers.values()]
        norms = torch.stack(
            [norm.to(norms[0].device) for norm in norms]
        ).tolist()  # one wait for the device, not one a layer
        too_large = [
            (layer, most / norm)
            for layer, norm in zip(self._layers.values(), norms, strict=True)
            if norm > most
        ]
        for layer, ratio in too_large:
            factors = factors_of(layer).values()
            for factor in factors:
                factor.mul_(ratio ** (1 / len(factors)))
        return len(too_large)


def count_parameters(
    parts: torch.nn.Module, shapes: Mapping[str, RankAlpha], form: AdapterSpec
) -> int:
    """Say how many numbers would learn, without building anything."""
    attentions = _attentions(parts, shapes)
    layers = {
        path: (
            attentions[_above(path)].out_proj
            if _above(path) in attentions
            else parts.get_submodule(path)
        )
        for path in shapes
    }
    return sum(
        math.prod(size)
        for path, shape in shapes.items()
        for size in weight_shapes(layers[path].weight.shape, shape.rank, form).values()
    )


# --- Attention that has its projections in one weight ---------------------------------------------


def _attentions(
    parts: torch.nn.Module, shapes: Mapping[str, RankAlpha]
) -> dict[str, torch.nn.MultiheadAttention]:
    """Return the `nn.MultiheadAttention`s whose projections learn; raises ValueError where that is
    only some of the four.
    """
    found: dict[str, torch.nn.MultiheadAttention] = {}
    for path in shapes:
        above = _above(path)
        if above not in found and isinstance(
            module := parts.get_submodule(above), torch.nn.MultiheadAttention
        ):
            if missing := [name for name in PROJECTIONS if f"{above}.{name}" not in shapes]:
                raise ValueError(
                    f"{above} must learn in all four projections or in none; {', '.join(missing)}"
                    " is missing"
                )
            found[above] = module
    return found


def _projection(attention: torch.nn.MultiheadAttention, path: str) -> torch.nn.Linear:
    """Return a Linear whose weight is a view of the projection's; it stands in for the layer that
    there is not.
    """
    number = PROJECTIONS.index(path.rpartition(".")[2])
    weight = [*attention.in_proj_weight.detach().chunk(3), attention.out_proj.weight.detach()][
        number
    ]
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def _attend(  # noqa: PLR0913
    attention: torch.nn.MultiheadAttention,
    adapters: tuple[torch.nn.Module, ...],
    dropouts: Dropouts,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do what `nn.MultiheadAttention.forward` does, with the adapters' changes added to the
    weights. Inputs are `(tokens, batch, width)`, or `(batch, tokens, width)` where the module says
    `batch_first`, or without a batch.
    """
    turned = attention.batch_first and query.dim() == 3
    if turned:
        swapped = {
            id(tensor): tensor.transpose(1, 0) for tensor in (query, key, value)
        }  # the same tensor stays the same: self-attention
        query, key, value = (swapped[id(tensor)] for tensor in (query, key, value))
    projections = [*attention.in_proj_weight.chunk(3), attention.out_proj.weight]
    *in_proj, out_proj = (
        changed_weight(adapter, weight, dropouts=dropouts)
        for adapter, weight in zip(adapters, projections, strict=True)
    )
    output, weights = torch.nn.functional.multi_head_attention_forward(
        query,
        key,
        value,
        attention.embed_dim,
        attention.num_heads,
        torch.cat(in_proj),
        attention.in_proj_bias,
        attention.bias_k,
        attention.bias_v,
        attention.add_zero_attn,
        attention.dropout,
        out_proj,
        attention.out_proj.bias,
        training=attention.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    return (output.transpose(1, 0) if turned else output), weights


def _place(parts: torch.nn.Module, path: str, adapter: torch.nn.Module) -> _Layer:
    above, _, attribute = path.rpartition(".")
    return _Layer(path, parts.get_submodule(above), attribute, adapter, parts.get_submodule(path))


def _above(path: str) -> str:
    return path.rpartition(".")[0]


def _shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
