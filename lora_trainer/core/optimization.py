"""Optimizers and learning-rate schedules."""
import math
from collections.abc import Iterable

import torch


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make the optimizer called `name`; raises ValueError for one that is not known."""
    if name != "adamw":
        raise ValueError(f"optimizer is {name!r}; expected 'adamw'")
    parameters = list(parameters)
    places = {parameter.device.type for parameter in parameters}
    fused = places == {"cuda"} or (places == {"cpu"} and torch.__version__ >= "2.4")               # one kernel for all parameters, where there is one
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


class LearningRates:
    """The schedule called `name`: a linear warm-up, then the named curve down to the last step. A step's rate depends on its number alone."""

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int) -> None:
        learning_rate_factor(name, 0, warmup_steps, total_steps)                   # an unknown name is refused now, not at the first step
        self._name, self._optimizer, self._warmup_steps, self._total_steps = name, optimizer, warmup_steps, total_steps
        self._highest = [group["lr"] for group in optimizer.param_groups]

    def set(self, step: int) -> float:
        """Give every group its rate for `step`, counted from 0, and return the first group's."""
        factor = learning_rate_factor(self._name, step, self._warmup_steps, self._total_steps)
        for group, highest in zip(self._optimizer.param_groups, self._highest):
            group["lr"] = highest * factor
        return self._optimizer.param_groups[0]["lr"]


def learning_rate_factor(name: str, step: int, warmup_steps: int, total_steps: int, cycles: int = 3) -> float:
    """Return the factor in [0, 1] on the learning rate at `step`, counted from 0; raises ValueError for an unknown schedule."""
    curves = {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1 - done,
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
        "cosine_with_restarts": lambda done: 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * (done * cycles % 1))),
        "polynomial": lambda done: (1 - done) ** 2,
    }
    if name not in curves:
        raise ValueError(f"scheduler is {name!r}; expected one of {', '.join(curves)}")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return curves[name](min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))
