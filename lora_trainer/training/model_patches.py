"""Everything of ours that is on the base model while it learns; taken off as one, so that others
find it clean, and put on again.
"""

import contextlib
from collections.abc import Iterator

import torch

from ..base.contracts import BaseModel
from ..lora.adapters import Adapters
from . import precision
from .compute_mode import ComputeMode


class ModelPatches:
    """Adapters, gradient checkpointing and attention of one run. `opened()` once around the run;
    `close` and `open` in between.
    """

    def __init__(
        self, base_model: BaseModel, adapters: Adapters, compute_mode: ComputeMode
    ) -> None:
        self.base_model, self.adapters, self.compute_mode = base_model, adapters, compute_mode
        self._modules, self._on_model = _modules(base_model), contextlib.ExitStack()

    @contextlib.contextmanager
    def opened(self) -> Iterator["ModelPatches"]:
        try:
            self.open()
            yield self
        finally:
            self.close()

    def open(self) -> None:
        """Put everything on. The model's modules may be other objects than before."""
        if self._modules != (modules := _modules(self.base_model)):
            self._modules = modules
            self.adapters.move_to(self.base_model.parts())
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.adapters.attached())
            stack.enter_context(
                precision.safe_attention(self.base_model.device, self.compute_mode.dtype)
            )
            stack.enter_context(
                precision.gradient_checkpointing(
                    self.base_model.parts(), self.compute_mode.gradient_checkpointing
                )
            )
            if self.compute_mode.offload_encoders:
                self.base_model.offload_encoders()
            self._on_model = stack.pop_all()

    def close(self) -> None:
        self._on_model.close()

    def change(self, compute_mode: ComputeMode) -> None:
        """Go on in another compute mode."""
        self.close()
        self.compute_mode = compute_mode
        self.open()


def _modules(base_model: BaseModel) -> list[torch.nn.Module]:
    """The model's own objects; they compare by identity."""
    return [base_model.unet, *base_model.text_encoders]
