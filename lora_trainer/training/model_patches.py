"""Everything of ours that is on the base model while it is trained: put on and taken off as one, so
that others find the model clean.
"""

import contextlib
from collections.abc import Iterator

import torch

from ..base.contracts import BaseModel
from ..lora.adapters import Adapters
from . import precision
from .compute_mode import ComputeMode


class ModelPatches:
    """Adapters, gradient checkpointing and attention of one run. `applied()` once around the run;
    `revert` and `apply` in between.
    """

    def __init__(
        self, base_model: BaseModel, adapters: Adapters, compute_mode: ComputeMode
    ) -> None:
        self.base_model = base_model
        self.adapters = adapters
        self.compute_mode = compute_mode
        self._modules = _modules(base_model)
        self._on_model = contextlib.ExitStack()

    @contextlib.contextmanager
    def applied(self) -> Iterator["ModelPatches"]:
        """Put everything on for the time of a `with` block."""
        try:
            self.apply()
            yield self
        finally:
            self.revert()

    def apply(self) -> None:
        """Put everything on. The model's modules may be other objects than before."""
        base_model, compute_mode = self.base_model, self.compute_mode
        modules = _modules(base_model)
        if modules != self._modules:
            self._modules = modules
            self.adapters.move_to(base_model.parts())
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.adapters.attached())
            stack.enter_context(precision.safe_attention(base_model.device, compute_mode.dtype))
            stack.enter_context(
                precision.gradient_checkpointing(
                    base_model.parts(), compute_mode.gradient_checkpointing
                )
            )
            if compute_mode.offload_encoders:
                base_model.offload_encoders()
            self._on_model = stack.pop_all()

    def revert(self) -> None:
        """Take everything off."""
        self._on_model.close()

    def change(self, compute_mode: ComputeMode) -> None:
        """Put everything on anew for another compute mode."""
        self.revert()
        self.compute_mode = compute_mode
        self.apply()


def _modules(base_model: BaseModel) -> list[torch.nn.Module]:
    """Return the model's own modules, which compare by identity."""
    return [base_model.unet, *base_model.text_encoders]
