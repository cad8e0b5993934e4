"""LoRA (arXiv 2106.09685) by peft's own layers: delta W = scale * up @ down.

What is ours here: one meaning of scale and dropouts in all versions of peft, and names in files.
"""

import functools
from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer as PeftLoraLayer

from ..base.autocast import no_autocast
from .adapter_layers import LORA_NAMES, AdapterLayer, AdapterSpec, Dropouts, RankAlpha

ADAPTER = "default"  # peft's name of the only adapter
ANY_NUMBER = r"\d+"  # the names of a ModuleList's modules


class LoraLayer(AdapterLayer):
    """A peft LoRA layer. `lora_down.weight` is `(rank, in[, k, k])`, `lora_up.weight` is
    `(out, rank[, 1, 1])`.
    """

    def __init__(
        self, peft_layer: torch.nn.Module, *, scale: float, dropouts: Dropouts, use_dora: bool
    ) -> None:
        assert isinstance(peft_layer, PeftLoraLayer)
        base_layer = peft_layer.base_layer
        assert isinstance(base_layer, (torch.nn.Linear, torch.nn.Conv2d))
        super().__init__(base_layer, scale=scale, dropouts=dropouts, use_dora=use_dora)
        self.peft_layer = peft_layer
        self.down = peft_layer.lora_A[ADAPTER]
        self.up = peft_layer.lora_B[ADAPTER]
        for factor in self.factors().values():
            factor.data = factor.data.float()
        peft_layer.scaling[ADAPTER] = scale
        # autocast casts the inputs once; peft would cast them to float32 first
        peft_layer.cast_input_dtype_enabled = False
        self._install_dropouts()

    def factors(self) -> dict[str, torch.nn.Parameter]:
        down, up = self.down.weight, self.up.weight
        assert isinstance(down, torch.nn.Parameter) and isinstance(up, torch.nn.Parameter)
        return dict(zip(LORA_NAMES, (down, up), strict=True))

    def set_base_layer(self, base_layer: torch.nn.Linear | torch.nn.Conv2d) -> None:
        super().set_base_layer(base_layer)
        self.peft_layer.base_layer = base_layer

    def forward_adapted(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.peft_layer(inputs)

    def change(self, *, dropouts: Dropouts | None) -> torch.Tensor:
        down, up = self.factors().values()
        rows, columns = down.flatten(1), up.flatten(1)  # (rank, in * k * k), (out, rank)
        with no_autocast(down.device):
            if dropouts:
                ones = torch.ones(1, rows.shape[1], device=rows.device)
                rows = rows * dropouts.drop_inputs(ones)
                mask = dropouts.rank_mask(len(rows), 1, device=rows.device)
                rows = rows if mask is None else rows * mask
            return (columns @ rows * self.scale).reshape(len(up), *down.shape[1:])

    def change_norm(self) -> torch.Tensor:
        """Return the norm without building the change: |BA|^2 = tr(B'B AA')."""
        down, up = (factor.flatten(1) for factor in self.factors().values())
        squared = ((up.mT @ up) * (down @ down.mT)).sum()
        return squared.clamp(min=0).sqrt() * self.scale

    def _install_dropouts(self) -> None:
        """Put dropouts into the peft layer; hooks and modules must not refer to `self`, or memory
        would wait for the garbage collector.
        """
        dropouts = self.dropouts
        if dropouts.input_rate:
            by_adapter = self.peft_layer.lora_dropout
            assert isinstance(by_adapter, torch.nn.ModuleDict)
            by_adapter[ADAPTER] = _InputDropout(dropouts)
        if dropouts.rank_rate:
            self.down.register_forward_hook(functools.partial(_drop_ranks, dropouts))
        if dropouts.module_rate:
            self.up.register_forward_hook(functools.partial(_drop_module, dropouts))


def build_lora_layers(
    base_layers: Sequence[torch.nn.Module],
    rank_alpha: RankAlpha,
    spec: AdapterSpec,
    dropouts: Dropouts,
) -> list[LoraLayer]:
    """Build a LoRA layer around each base layer. Draws from torch's global generator.

    peft works on a container of its own, so the model that the layers are part of is not touched;
    the base's parameters keep their requires_grad.
    """
    container = torch.nn.ModuleList(base_layers)
    flags = [(parameter, parameter.requires_grad) for parameter in container.parameters()]
    config = LoraConfig(
        r=rank_alpha.rank,
        lora_alpha=rank_alpha.alpha,  # type: ignore[arg-type]  # peft takes fractions, too
        lora_dropout=spec.dropout,
        target_modules=ANY_NUMBER,
    )
    try:
        inject_adapter_in_model(config, container, ADAPTER)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    scale = spec.scale(rank_alpha)
    return [
        LoraLayer(peft_layer, scale=scale, dropouts=dropouts, use_dora=spec.use_dora)
        for peft_layer in container
    ]


class _InputDropout(torch.nn.Module):
    def __init__(self, dropouts: Dropouts) -> None:
        super().__init__()
        self._dropouts = dropouts

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._dropouts.drop_inputs(inputs)


def _drop_ranks(
    dropouts: Dropouts, down: torch.nn.Module, inputs: tuple, output: torch.Tensor
) -> torch.Tensor | None:
    """Drop ranks, others for each picture, and scale up the rest, so that the mean stays; like
    kohya's rank_dropout. `output` is `(batch, ..., rank)` or `(batch, rank, h, w)`.

    Older versions of open_clip compute in `(tokens, batch, width)`: in their MLPs the ranks are
    others for each token and the same in all pictures, as with kohya's.
    """
    assert isinstance(down.weight, torch.Tensor)
    mask = dropouts.rank_mask(len(output), len(down.weight), device=output.device)
    if mask is None:
        return None
    if output.dim() == 4:
        shape = (*mask.shape, 1, 1)
    else:
        shape = (len(mask), *[1] * (output.dim() - 2), -1)
    return output * mask.to(output.dtype).reshape(shape)


def _drop_module(
    dropouts: Dropouts, up: torch.nn.Module, inputs: tuple, output: torch.Tensor
) -> torch.Tensor | None:
    return torch.zeros_like(output) if dropouts.drops_module() else None
