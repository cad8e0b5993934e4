"""Adapters of a `nn.MultiheadAttention`, as in open_clip's text encoders: its query, key and value
projections are one weight, `in_proj_weight`, so there are no layers that could be swapped.

Four adapter layers are built around views of that weight; while attached, the module has a
`forward` that computes with changed weights.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import torch

from ..base.patching import replaced_forward
from .adapter_layers import AdapterLayer, Dropouts
from .target_layers import PROJECTIONS


@dataclasses.dataclass(frozen=True)
class MultiheadSlot:
    """Where the four adapter layers of a `nn.MultiheadAttention` belong; they are in the order of
    `PROJECTIONS`.
    """

    path: str
    module: torch.nn.MultiheadAttention
    layers: tuple[AdapterLayer, ...]
    dropouts: Dropouts
    attached: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def attach(self) -> None:
        forward = functools.partial(_forward, self.module, self.layers, self.dropouts)
        self.attached.enter_context(replaced_forward(self.module, forward))

    def detach(self) -> None:
        self.attached.close()

    def moved_to(self, parts: torch.nn.Module) -> "MultiheadSlot":
        """Return the slot of the same path in other parts."""
        module = parts.get_submodule(self.path)
        assert isinstance(module, torch.nn.MultiheadAttention)
        return dataclasses.replace(self, module=module)


def find_multiheads(
    parts: torch.nn.Module, paths: Collection[str]
) -> dict[str, torch.nn.MultiheadAttention]:
    """Return each `nn.MultiheadAttention`, by its path, of which projections are among `paths`.

    Raises ValueError where only some of its four projections are.
    """
    found: dict[str, torch.nn.MultiheadAttention] = {}
    for path in paths:
        parent = parent_of(path)
        if parent in found:
            continue
        module = parts.get_submodule(parent)
        if not isinstance(module, torch.nn.MultiheadAttention):
            continue
        if missing := [name for name in PROJECTIONS if f"{parent}.{name}" not in paths]:
            raise ValueError(
                f"{parent} must learn in all four projections or in none; {', '.join(missing)}"
                " is missing"
            )
        found[parent] = module
    return found


def projection_layer(module: torch.nn.MultiheadAttention, path: str) -> torch.nn.Linear:
    """Return a Linear whose weight is a view of one projection's, `(width, width)`; `path` ends
    with the projection's name.
    """
    projections = _projection_weights(module)
    weight = projections[PROJECTIONS.index(path.rpartition(".")[2])].detach()
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def forget_weight(layer: torch.nn.Linear | torch.nn.Conv2d) -> None:
    """Let a projection's layer hold on to no data: its view would go stale when the host moves the
    weight.
    """
    empty = torch.empty_like(layer.weight, device="meta")
    layer.weight = torch.nn.Parameter(empty, requires_grad=False)


def parent_of(path: str) -> str:
    """Return the path of the module that a layer is an attribute of."""
    return path.rpartition(".")[0]


def _projection_weights(module: torch.nn.MultiheadAttention) -> list[torch.Tensor]:
    """Return the weights of q, k, v and out, each `(width, width)`."""
    return [*module.in_proj_weight.chunk(3), module.out_proj.weight]


def _forward(
    module: torch.nn.MultiheadAttention,
    layers: tuple[AdapterLayer, ...],
    dropouts: Dropouts,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *options: Any,
    **named_options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do what `nn.MultiheadAttention.forward` does, with the layers' changes added to the weights.

    Inputs are `(tokens, batch, width)`, `(batch, tokens, width)` where the module is `batch_first`,
    or `(tokens, width)`. The further arguments are those of torch's forward.
    """
    by_batch = module.batch_first and query.dim() == 3
    if by_batch:
        query, key, value = _swap_batch_and_tokens(query, key, value)
    weights = [
        layer.changed_weight(weight, dropouts=dropouts)
        for layer, weight in zip(layers, _projection_weights(module), strict=True)
    ]
    output, attention = torch.nn.functional.multi_head_attention_forward(
        query,
        key,
        value,
        module.embed_dim,
        module.num_heads,
        torch.cat(weights[:3]),
        module.in_proj_bias,
        module.bias_k,
        module.bias_v,
        module.add_zero_attn,
        module.dropout,
        weights[3],
        module.out_proj.bias,
        training=module.training,
        **_named(options, named_options),
    )
    return (output.transpose(1, 0) if by_batch else output), attention


def _swap_batch_and_tokens(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return each tensor with its first two dimensions swapped; the same tensor stays the same
    object, by which torch knows self-attention.
    """
    swapped = {id(tensor): tensor.transpose(1, 0) for tensor in tensors}
    return [swapped[id(tensor)] for tensor in tensors]


def _named(options: tuple[Any, ...], named_options: dict[str, Any]) -> dict[str, Any]:
    """Name the arguments of `nn.MultiheadAttention.forward` that may be given by position."""
    names = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
    if len(options) > len(names) or named_options.keys() - set(names):
        raise TypeError(f"nn.MultiheadAttention.forward takes {', '.join(names)}")
    return {**dict(zip(names, options, strict=False)), **named_options}
