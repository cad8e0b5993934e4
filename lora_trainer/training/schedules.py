"""Learning-rate curves: pure functions of a step's number."""

import math
from collections.abc import Callable

# one_cycle, as torch.optim.lr_scheduler.OneCycleLR has it by default: the share of steps that rise,
# and the factors at the start and at the end.
RISE, START, END = 0.3, 1 / 25, 1 / 25 / 1e4


def learning_rate_factor(
    name: str, step: int, warmup_steps: int, total_steps: int, cycles: int = 3, power: float = 2.0
) -> float:
    """Return the factor in [0, 1] on the learning rate at `step`, counted from 0; raises ValueError
    for an unknown schedule.

    A linear warm-up, then the named curve down to the last step. `one_cycle` rises by itself, over
    the warm-up's steps where there are any.
    """

    def cosine_with_restarts(done: float) -> float:
        return 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * (done * cycles % 1)))

    curves: dict[str, Callable[[float], float]] = {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1 - done,
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
        "cosine_with_restarts": cosine_with_restarts,
        "polynomial": lambda done: (1 - done) ** power,
    }
    if name == "one_cycle":
        return _one_cycle(step, warmup_steps, total_steps)
    if name not in curves:
        raise ValueError(
            f"scheduler is {name!r}; expected one of {', '.join((*curves, 'one_cycle'))}"
        )
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return curves[name](min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def _one_cycle(step: int, warmup_steps: int, total_steps: int) -> float:
    """Rise from a 25th and fall to next to nothing, both along a cosine (arXiv 1708.07120)."""
    peak = (min(warmup_steps, total_steps) or RISE * total_steps) - 1
    last = total_steps - 1
    if step <= peak:
        return _along_cosine(START, 1.0, step / peak if peak else 1.0)
    if step >= last:
        return _along_cosine(1.0, END, 1.0)
    return _along_cosine(1.0, END, min(1.0, (step - peak) / (last - peak)))


def _along_cosine(start: float, end: float, fraction: float) -> float:
    """Return the value at a fraction in [0, 1] of the way from `start` to `end`."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
