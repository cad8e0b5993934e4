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


def make_schedule(name: str, optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the schedule called `name`: a linear warm-up, then the named curve down to the last step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(name, step, warmup_steps, total_steps))


def learning_rate_factor(name: str, step: int, warmup_steps: int, total_steps: int, cycles: int = 3) -> float:
    """Return the factor in [0, 1] on the learning rate at `step`, counted from 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    curves = {
        "constant": lambda: 1.0,
        "linear": lambda: 1 - done,
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * done)),
        "cosine_with_restarts": lambda: 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * (done * cycles % 1))),
        "polynomial": lambda: (1 - done) ** 2,
    }
    if name not in curves:
        raise ValueError(f"scheduler is {name!r}; expected one of {', '.join(curves)}")
    return curves[name]()
