"""What learns: the adapters with their optimizer, learning rate, average and place in the run. Can
be taken down as a `State` and set up again.

A state holds every number that the next step depends on; all else comes from (seed, purpose, step).
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..lora.adapter_layers import AdapterSpec, RankAlpha
from ..lora.adapters import Adapters
from .optimizers import LearningRates, averaged, is_schedule_free
from .precision import grad_scaler
from .state_files import State

Weights = dict[str, dict[str, torch.Tensor]]
_DRIVEN = {"params", "lr"}  # of a group: not the optimizer's own, so not in a state


class TrainState:
    """`step` counts finished optimizer steps; `loss_average` is smoothed over them.

    With `ema_decay` an exponential moving average of the weights is kept beside them and saved in
    their place; with `scale_weight_norms` no layer's change grows larger than that (kohya's max
    norm).
    """

    def __init__(
        self,
        adapters: Adapters,
        optimizer: torch.optim.Optimizer,
        rates: LearningRates,
        *,
        device: torch.device,
        dtype: torch.dtype,
        ema_decay: float = 0.0,
        scale_weight_norms: float = 0.0,
    ) -> None:
        self.adapters, self.optimizer, self.rates, self._device = adapters, optimizer, rates, device
        self.scaler = grad_scaler(device, dtype)
        self.step, self.loss_average = 0, None
        # inside the optimizer's step: an error there leaves some weights changed, some not
        self.in_optimizer_step = False
        self._ema_decay, self._largest_norm = ema_decay, scale_weight_norms
        self._ema: list[torch.Tensor] | None = None
        self._as_made = [
            {key: value for key, value in group.items() if key not in _DRIVEN}
            for group in optimizer.param_groups
        ]

    def compute_in(self, dtype: torch.dtype) -> None:
        """Get ready for steps in another type: a loss scaler for float16, none for others."""
        self.scaler = grad_scaler(self._device, dtype)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep layers below the weight-norm limit and the average up to date; after each optimizer
        step, when `step` counts it.
        """
        if self._largest_norm:
            self._limit_norms()
        if self._ema_decay:
            self._average()

    @torch.no_grad()
    def weights_to_save(self) -> Weights:
        """Return the weights of a LoRA to be used now, as `Adapters.weights()`: averaged where they
        are averaged. Training is not disturbed by it.
        """
        if self._ema is None and not is_schedule_free(self.optimizer):
            return self.adapters.weights()
        points = self._points() if self._ema is None else self._ema
        with self._holding([point.clone() for point in points]):
            if self._largest_norm:
                self.adapters.limit_norms(self._largest_norm)
            return self.adapters.weights()

    def to(self, device: torch.device) -> None:
        """Move weights, moments and average; a pause frees the device's memory so."""
        for parameter in self._parameters():
            parameter.data = parameter.data.to(device)
        if self._ema is not None:
            self._ema = [tensor.to(device) for tensor in self._ema]
        moved: dict[
            int, tuple[torch.Tensor, torch.Tensor]
        ] = {}  # what several parameters share stays one; the old keep their ids
        for values in self.optimizer.state.values():
            for key, value in values.items():
                if isinstance(value, torch.Tensor) and value.dim():
                    moved[id(value)] = moved.get(id(value)) or (value, value.to(device))
                    values[key] = moved[id(value)][1]

    # --- Taken down and set up --------------------------------------------------------------------

    def state(self, facts: Mapping[str, Any]) -> State:
        """Take everything down, tensors as they are; `facts` are added to the train state's own."""
        tensors = _named("lora", self.adapters.weights())
        if self._ema is not None:
            with self._holding(self._ema):
                tensors |= _named("ema", self.adapters.weights())
        numbers, shared, held = {}, {}, {}
        for place, values in self._optimizer_values():
            for key, value in values.items():
                if not isinstance(value, torch.Tensor):
                    numbers.setdefault(place, {})[key] = value
                elif id(value) in held:
                    shared[f"{place}/{key}"] = held[id(value)]
                else:
                    held[id(value)] = f"{place}/{key}"
                    tensors[f"{place}/{key}"] = value.detach()
        own = {
            "shapes": {
                path: [shape.rank, shape.alpha] for path, shape in self.adapters.rank_alphas.items()
            },
            "form": dataclasses.asdict(self.adapters.spec),
            "loss_average": self.loss_average,
            "scaler": self.scaler.state_dict(),
            "optimizer": {
                "type": type(self.optimizer).__name__,
                "numbers": numbers,
                "shared": shared,
            },
        }
        return State(self.step, tensors, {**facts, **own})

    def restore(self, state: State) -> None:
        """Go back, or on, to where a state was taken; raises ValueError when it is of other layers
        or of another optimizer.
        """
        optimizer = state.facts["optimizer"]
        if optimizer["type"] != type(self.optimizer).__name__:
            raise ValueError(
                f"the state is of {optimizer['type']}, not of {type(self.optimizer).__name__}"
            )
        self._restore_weights(state)
        tensors = {
            name: tensor.clone()
            for name, tensor in state.tensors.items()
            if name.startswith(("optimizer/", "group/"))
        }
        tensors |= {name: tensors[first] for name, first in optimizer["shared"].items()}
        self._restore_optimizer(tensors, optimizer["numbers"])
        if state.facts["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state.facts["scaler"])
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.loss_average, self.in_optimizer_step = (
            state.step,
            state.facts["loss_average"],
            False,
        )

    def _optimizer_values(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield what the optimizer holds of each parameter, and of each group what has changed
        since it was made: Prodigy's d, Schedule-Free's k.
        """
        for index, parameter in enumerate(self._parameters()):
            if parameter in self.optimizer.state:
                yield f"optimizer/{index}", self.optimizer.state[parameter]
        for index, (group, made) in enumerate(
            zip(self.optimizer.param_groups, self._as_made, strict=True)
        ):
            yield (
                f"group/{index}",
                {
                    key: value
                    for key, value in group.items()
                    if key not in _DRIVEN and not (key in made and _is_same(value, made[key]))
                },
            )

    def _restore_weights(self, state: State) -> None:
        weights, average = _weights_in(state, "lora"), _weights_in(state, "ema")
        self._ema = None
        if average and self._ema_decay:
            self.adapters.load(average)
            self._ema = [point.detach().clone() for point in self._parameters()]
        self.adapters.load(weights)

    def _restore_optimizer(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Set the optimizer's values one by one: its own `load_state_dict` would cast them."""
        self.optimizer.state.clear()
        found: dict[str, dict[str, Any]] = {
            place: dict(values) for place, values in numbers.items()
        }
        for name, tensor in tensors.items():
            place, key = name.rsplit("/", 1)
            found.setdefault(place, {})[key] = tensor
        moved: dict[int, torch.Tensor] = {}
        of_group = [
            (group, parameter)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        for index, (group, parameter) in enumerate(of_group):
            if values := found.get(f"optimizer/{index}"):
                self.optimizer.state[parameter] = {
                    key: _placed(key, value, group, parameter, moved)
                    for key, value in values.items()
                }
        for index, (group, made) in enumerate(
            zip(self.optimizer.param_groups, self._as_made, strict=True)
        ):
            for key in group.keys() - made.keys() - _DRIVEN:
                del group[key]
            group.update({**made, **found.get(f"group/{index}", {})})

    # --- Averages and norms -----------------------------------------------------------------------

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _points(self) -> list[torch.Tensor]:
        return [
            averaged(self.optimizer, group, parameter)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]

    def _average(self) -> None:
        """Move the average towards the weights by 1 - min(decay, (1 + n) / (10 + n)) at the n-th
        step, counted from 0; it begins as the first step's weights.
        """
        points, before = [point.float() for point in self._points()], self.step - 1
        if self._ema is None:
            self._ema = [point.clone() for point in points]
        else:
            torch._foreach_lerp_(
                self._ema, points, 1 - min(self._ema_decay, (1 + before) / (10 + before))
            )

    def _limit_norms(self) -> None:
        """Scale large layers down, and with Schedule-Free the point z of their weights alike, on
        which the average rests.
        """
        places = [
            (parameter, values["z"], parameter.norm())
            for parameter in self._parameters()
            if "z" in (values := self.optimizer.state.get(parameter, {}))
        ]
        self.adapters.limit_norms(self._largest_norm)
        for parameter, z, norm in places:
            after = parameter.norm()
            z.mul_(torch.where(norm > 0, after / norm, torch.ones_like(norm)))

    @contextlib.contextmanager
    def _holding(self, points: list[torch.Tensor]) -> Iterator[None]:
        """Let the adapters hold other values for a while; their own come back as they were, bit for
        bit.
        """
        own = [(parameter, parameter.data) for parameter in self._parameters()]
        try:
            for (parameter, _), point in zip(own, points, strict=True):
                parameter.data = point
            yield
        finally:
            for parameter, data in own:
                parameter.data = data


def shapes_of_state(state: State) -> dict[str, RankAlpha]:
    """Return rank and alpha of each layer of a state, by path, in the layers' order."""
    return {
        path: RankAlpha(int(rank), float(alpha))
        for path, (rank, alpha) in state.facts["shapes"].items()
    }


def form_of_state(state: State) -> AdapterSpec:
    """Return what kind of layers a state is of."""
    return AdapterSpec(**state.facts["form"])


def _named(prefix: str, weights: Weights) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}/{factor}/{path}": tensor
        for path, factors in weights.items()
        for factor, tensor in factors.items()
    }


def _weights_in(state: State, prefix: str) -> Weights:
    """Return the tensors named `prefix/factor/path`, by path and factor."""
    weights: Weights = {}
    for name, tensor in state.tensors.items():
        kind, factor, path = name.split("/", 2)
        if kind == prefix:
            weights.setdefault(path, {})[factor] = tensor
    return weights


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and torch.equal(one, other)
        )
    return type(one) is type(other) and one == other


def _placed(
    key: str,
    value: Any,
    group: Mapping[str, Any],
    parameter: torch.nn.Parameter,
    moved: dict[int, torch.Tensor],
) -> Any:
    """Put a value where the optimizer wants it: beside its parameter, only torch's step counts on
    the CPU unless they are fused.
    """
    if not isinstance(value, torch.Tensor) or (key == "step" and not group.get("fused")):
        return value
    if id(value) not in moved:
        moved[id(value)] = value.to(parameter.device)
    return moved[id(value)]
