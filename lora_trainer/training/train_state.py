"""What a run changes as it trains: adapters, optimizer, averages and the step. Can be saved as a
`State` and restored.

A state holds every number that the next step depends on; all else comes from (seed, purpose, step).
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..lora.adapter_layers import AdapterSpec, RankAlpha, Weights
from ..lora.adapters import Adapters
from .learning_rates import LearningRates
from .precision import grad_scaler
from .schedule_free import averaged_weights, is_schedule_free
from .state_files import State

AVERAGED_OVER_STEPS = 50
_DRIVEN = {"params", "lr"}  # of a param_group: set by us, so not in a state


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
        self.adapters = adapters
        self.optimizer = optimizer
        self.rates = rates
        self.scaler = grad_scaler(device, dtype)
        self.step = 0
        self.loss_average: float | None = None
        # True while the optimizer works: an error then leaves some weights changed, some not.
        self.in_optimizer_step = False
        self._device = device
        self._ema_decay = ema_decay
        self._max_norm = scale_weight_norms
        self._ema: list[torch.Tensor] | None = None
        self._initial_groups = [_own_values(group) for group in optimizer.param_groups]

    def average_loss(self, loss: float) -> float:
        """Move the average towards the loss of the step that was just taken, and return it."""
        self.loss_average = smooth_loss(self.loss_average, loss, self.step)
        return self.loss_average

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Compute steps in another dtype from now on: with a loss scaler for float16 only."""
        self.scaler = grad_scaler(self._device, dtype)

    @torch.no_grad()
    def limit_norms_and_average(self) -> None:
        """Keep layers below the weight-norm limit and the moving average up to date; called after
        each optimizer step, when `step` counts it.
        """
        if self._max_norm:
            self._limit_norms()
        if self._ema_decay:
            self._update_average()

    @torch.no_grad()
    def weights_to_save(self) -> Weights:
        """Return the weights that a LoRA file gets, as `Adapters.weights()`: the average, if there
        is one. Nothing is changed.
        """
        if self._ema is None and not is_schedule_free(self.optimizer):
            return self.adapters.weights()
        points = self._points() if self._ema is None else self._ema
        with self._holding([point.clone() for point in points]):
            if self._max_norm:
                self.adapters.limit_norms(self._max_norm)
            return self.adapters.weights()

    def to(self, device: torch.device) -> None:
        """Move weights, the optimizer's state and the average, to free the memory of a device."""
        for parameter in self._parameters():
            parameter.data = parameter.data.to(device)
        if self._ema is not None:
            self._ema = [tensor.to(device) for tensor in self._ema]
        # A tensor that several parameters share stays one. The old ones are held: ids stay unique.
        moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for values in self.optimizer.state.values():
            for key, value in values.items():
                if isinstance(value, torch.Tensor) and value.dim():
                    if id(value) not in moved:
                        moved[id(value)] = (value, value.to(device))
                    values[key] = moved[id(value)][1]

    # --- Saved and restored -----------------------------------------------------------------------

    def state(self, facts: Mapping[str, Any]) -> State:
        """Return everything as a `State`, tensors as they are, with `facts` of the run."""
        tensors = _named("lora", self.adapters.weights())
        if self._ema is not None:
            with self._holding(self._ema):
                tensors |= _named("ema", self.adapters.weights())
        optimizer_tensors, optimizer_facts = self._optimizer_state()
        shapes = self.adapters.rank_alphas
        own = {
            "shapes": {path: [shape.rank, shape.alpha] for path, shape in shapes.items()},
            "form": dataclasses.asdict(self.adapters.spec),
            "loss_average": self.loss_average,
            "scaler": self.scaler.state_dict(),
            "optimizer": optimizer_facts,
        }
        return State(self.step, tensors | optimizer_tensors, {**facts, **own})

    def _optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the optimizer's tensors, named by place and key, and as plain values the rest:
        numbers by place, and for a tensor that is shared the name it is saved under.
        """
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        shared: dict[str, str] = {}
        names: dict[int, str] = {}  # by id
        for place, values in self._optimizer_values():
            for key, value in values.items():
                name = f"{place}/{key}"
                if not isinstance(value, torch.Tensor):
                    numbers.setdefault(place, {})[key] = value
                elif id(value) in names:
                    shared[name] = names[id(value)]
                else:
                    names[id(value)] = name
                    tensors[name] = value.detach()
        facts = {"type": type(self.optimizer).__name__, "numbers": numbers, "shared": shared}
        return tensors, facts

    def restore(self, state: State) -> None:
        """Set everything to the values of a state; raises ValueError when it is of other layers or
        of another optimizer.
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
        self.step = state.step
        self.loss_average = state.facts["loss_average"]
        self.in_optimizer_step = False

    def _optimizer_values(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield, by their place in a state, the values that the optimizer holds for each parameter,
        and those of each group that have changed since it was made: Prodigy's d, Schedule-Free's k.
        """
        for index, parameter in enumerate(self._parameters()):
            if parameter in self.optimizer.state:
                yield f"optimizer/{index}", self.optimizer.state[parameter]
        for index, (group, initial) in enumerate(self._groups()):
            changed = {
                key: value
                for key, value in _own_values(group).items()
                if key not in initial or not _is_same(value, initial[key])
            }
            yield f"group/{index}", changed

    def _groups(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the optimizer's groups, each with its own values as it was made."""
        return zip(self.optimizer.param_groups, self._initial_groups, strict=True)

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
        saved = {place: dict(values) for place, values in numbers.items()}
        for name, tensor in tensors.items():
            place, key = name.rsplit("/", 1)
            saved.setdefault(place, {})[key] = tensor
        moved: dict[int, torch.Tensor] = {}
        for index, (group, parameter) in enumerate(self._parameters_with_groups()):
            if values := saved.get(f"optimizer/{index}"):
                self.optimizer.state[parameter] = {
                    key: _placed(key, value, group, parameter, moved)
                    for key, value in values.items()
                }
        for index, (group, initial) in enumerate(self._groups()):
            for key in group.keys() - initial.keys() - _DRIVEN:
                del group[key]
            group.update({**initial, **saved.get(f"group/{index}", {})})

    # --- Averages and norms -----------------------------------------------------------------------

    def _parameters_with_groups(self) -> Iterator[tuple[dict[str, Any], torch.nn.Parameter]]:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                yield group, parameter

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for _, parameter in self._parameters_with_groups()]

    def _points(self) -> list[torch.Tensor]:
        """Return the values of all parameters that are to be used."""
        return [
            averaged_weights(self.optimizer, group, parameter)
            for group, parameter in self._parameters_with_groups()
        ]

    def _update_average(self) -> None:
        """Move the average towards the weights by 1 - min(decay, (1 + n) / (10 + n)) at the n-th
        step, counted from 0; it begins as the first step's weights.
        """
        points = [point.float() for point in self._points()]
        n = self.step - 1
        if self._ema is None:
            self._ema = [point.clone() for point in points]
        else:
            torch._foreach_lerp_(self._ema, points, 1 - min(self._ema_decay, (1 + n) / (10 + n)))

    def _limit_norms(self) -> None:
        """Scale large layers down, and with Schedule-Free by the same factor the point z, from
        which the average is computed.
        """
        before = []
        for parameter in self._parameters():
            z = self.optimizer.state.get(parameter, {}).get("z")
            if z is not None:
                before.append((parameter, z, parameter.norm()))
        self.adapters.limit_norms(self._max_norm)
        for parameter, z, norm in before:
            factor = torch.where(norm > 0, parameter.norm() / norm, torch.ones_like(norm))
            z.mul_(factor)

    @contextlib.contextmanager
    def _holding(self, points: list[torch.Tensor]) -> Iterator[None]:
        """Let the adapters hold other values within a `with` block; their own come back bit for
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


def smooth_loss(average: float | None, loss: float, step: int) -> float:
    """Return the average of the last losses, moved towards that of `step`, counted from 1."""
    if average is None:
        return loss
    return average + (loss - average) / min(step, AVERAGED_OVER_STEPS)


def shapes_of_state(state: State) -> dict[str, RankAlpha]:
    """Return rank and alpha of each layer of a state, by path, in the layers' order."""
    return {
        path: RankAlpha(int(rank), float(alpha))
        for path, (rank, alpha) in state.facts["shapes"].items()
    }


def form_of_state(state: State) -> AdapterSpec:
    """Return what a state says is built into each layer."""
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


def _own_values(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a param_group that are the optimizer's own."""
    return {key: value for key, value in group.items() if key not in _DRIVEN}


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    return type(one) is type(other) and one == other


def _placed(
    key: str,
    value: Any,
    group: Mapping[str, Any],
    parameter: torch.nn.Parameter,
    moved: dict[int, torch.Tensor],
) -> Any:
    """Return a value on the device where the optimizer expects it: its parameter's, except for
    step counts, which stay on the CPU unless the optimizer is fused. `moved` are the tensors that
    were moved before, by the id of the original, as some are shared.
    """
    if not isinstance(value, torch.Tensor) or (key == "step" and not group.get("fused")):
        return value
    if id(value) not in moved:
        moved[id(value)] = value.to(parameter.device)
    return moved[id(value)]
