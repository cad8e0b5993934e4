"""What learns: the adapters with their optimizer, learning rate and place in the run. Can be taken down as a `State` and set up again.

A state holds every number that the next step depends on; all else comes from (seed, purpose, step).
"""
from collections.abc import Mapping
from typing import Any

import torch

from .adapters import Adapters
from .checkpoint import State
from .optimization import LearningRates
from .precision import grad_scaler


class Learner:
    """`step` counts finished optimizer steps; `loss_average` is smoothed over them."""

    def __init__(self, adapters: Adapters, optimizer: torch.optim.Optimizer, rates: LearningRates, *, device: torch.device, dtype: torch.dtype) -> None:
        self.adapters, self.optimizer, self.rates, self._device = adapters, optimizer, rates, device
        self.scaler = grad_scaler(device, dtype)
        self.step, self.loss_average = 0, None
        self.half_done = False                     # inside the optimizer's step: an error there leaves some weights changed, some not

    def compute_in(self, dtype: torch.dtype) -> None:
        """Get ready for steps in another type: a loss scaler for float16, none for others."""
        self.scaler = grad_scaler(self._device, dtype)

    def state(self, facts: Mapping[str, Any]) -> State:
        """Take everything down, tensors as they are; `facts` are added to the learner's own."""
        tensors = {f"lora.{side}.{path}": weight for path, pair in self.adapters.weights().items() for side, weight in zip(("down", "up"), pair)}
        numbers: dict[str, dict[str, Any]] = {}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{key}": value for key, value in values.items() if isinstance(value, torch.Tensor)})
            if plain := {key: value for key, value in values.items() if not isinstance(value, torch.Tensor)}:
                numbers[str(index)] = plain
        return State(self.step, tensors, {**facts, "alphas": self.adapters.alphas, "loss_average": self.loss_average, "scaler": self.scaler.state_dict(), "optimizer_numbers": numbers})

    def restore(self, state: State) -> None:
        """Go back, or on, to where a state was taken; raises ValueError when it is of other layers."""
        down = {name.removeprefix("lora.down."): tensor for name, tensor in state.tensors.items() if name.startswith("lora.down.")}
        self.adapters.load({path: (tensor, state.tensors[f"lora.up.{path}"]) for path, tensor in down.items()})
        moments: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in state.facts["optimizer_numbers"].items()}
        for name, tensor in state.tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                moments.setdefault(int(index), {})[key] = tensor.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if state.facts["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state.facts["scaler"])
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.loss_average, self.half_done = state.step, state.facts["loss_average"], False

    def to(self, device: torch.device) -> None:
        """Move weights and moments; a pause frees the device's memory so."""
        for parameter in self.adapters.parameters():
            parameter.data = parameter.data.to(device)
        for values in self.optimizer.state.values():
            values.update({key: value.to(device) for key, value in values.items() if isinstance(value, torch.Tensor) and value.dim()})
