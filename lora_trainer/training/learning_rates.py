"""The learning rates of a run: checked, warned of, and driven along a schedule."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch

from ..base.errors import ErrorCode, Refused
from ..settings.remedies import ActionableWarning, Remedy, details_of, set_to
from .optimizer_kinds import OptimizerKind, optimizer_kind
from .parameter_groups import ParamGroup
from .schedule_free import is_schedule_free
from .schedules import learning_rate_factor

_FIELDS = {"unet": "learning_rate", "text_encoder": "text_encoder_lr"}


def check_rates(name: str, learning_rates: Mapping[str, float]) -> None:
    """Raise `Refused` for learning rates, by group, that are all 0, or that differ where the
    optimizer finds one for all.
    """
    kind = optimizer_kind(name)
    learning = {group: rate for group, rate in learning_rates.items() if rate}
    if not learning:
        raise Refused(
            "The learning rate is 0, so nothing would learn. Give the UNet or the text encoder"
            " one.",
            field="text_encoder_lr",
            code=ErrorCode.BAD_RATES,
        )
    if kind.finds_rate and len(set(learning.values())) > 1:
        listed = " and ".join(f"{rate:g} ({group})" for group, rate in learning.items())
        one = {_FIELDS[group]: 1.0 for group in learning if group in _FIELDS}
        raise Refused(
            f"{kind.title} finds one learning rate for everything, and {listed} differ."
            " Make Learning rate and Learning rate, text encoder the same, usually 1; or 0 for the"
            " text encoder. It takes no LoRA+ ratio but 1, and no Learning rates of blocks but 0.",
            field="text_encoder_lr",
            code=ErrorCode.BAD_RATES,
            details=details_of(Remedy("Set both to 1", one)),
        )


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate in use, of the first group without its factor, with what the
    optimizer itself makes of it: Prodigy's d * lr.
    """
    group = optimizer.param_groups[0]
    return _rate_of(optimizer, group) / (group.get("factor") or 1.0)


def _rate_of(optimizer: torch.optim.Optimizer, group: ParamGroup) -> float:
    if group["lr"] is None:  # Adafactor with relative_step
        for parameter in group["params"]:
            if state := optimizer.state.get(parameter):
                return float(cast(Any, optimizer)._get_lr(group, state))
        return 0.0
    if "scheduled_lr" in group:  # Schedule-Free, with a warm-up of its own
        return float(group["scheduled_lr"])
    return float(group["d"] * group["lr"]) if "d" in group else float(group["lr"])


def rate_warnings(name: str, *, learning_rates: Mapping[str, float], scheduler: str) -> list[str]:
    """Say what is unusual about learning rates and schedule, in sentences for the user."""
    learning = {group: rate for group, rate in learning_rates.items() if rate}
    warnings = _unusual_rates(optimizer_kind(name), learning)
    if name == "schedulefree" and scheduler != "constant":
        warnings.append(
            ActionableWarning(
                f"Schedule-Free needs no schedule: {scheduler} is not used, the warm-up is.",
                set_to("scheduler", "constant"),
            )
        )
    return warnings


def _unusual_rates(kind: OptimizerKind, rates: Mapping[str, float]) -> list[str]:
    """Warn of learning rates, none of them 0, that are unusual for this optimizer."""
    highest = max(rates.values(), default=math.inf)
    low = highest < kind.lowest_rate
    wrong = [group for group, rate in rates.items() if low or rate >= kind.too_high_rate]
    if not wrong:
        return []
    sentence = _too_low(kind, highest) if low else _too_high(kind, highest)
    plural = "s" if len(wrong) > 1 else ""
    remedy = Remedy(
        f"Set the learning rate{plural} to {kind.usual_rate:g}",
        {_FIELDS[group]: kind.usual_rate for group in wrong},
    )
    return [ActionableWarning(f"{sentence} {kind.usual_rate:g} is usual.", remedy)]


def _too_low(kind: OptimizerKind, rate: float) -> str:
    if kind.finds_rate:
        return f"{_takes_factor(kind, rate)} it learns next to nothing."
    return (
        f"A learning rate of {rate:g} is far too low for {kind.title}: it learns next to nothing."
    )


def _too_high(kind: OptimizerKind, rate: float) -> str:
    if kind.finds_rate:
        return f"{_takes_factor(kind, rate)} its steps are too large."
    if rate >= 0.1:
        return (
            f"A learning rate of {rate:g} is for Prodigy and D-Adaptation; {kind.title} will"
            " break the pictures with it."
        )
    if kind.title == "Lion":
        return (
            "Lion's steps are larger than AdamW's: a third to a tenth of the learning rate is"
            " usual."
        )
    return (
        f"A learning rate of {rate:g} is far too high for {kind.title}: the pictures will"
        " fall apart."
    )


def _takes_factor(kind: OptimizerKind, factor: float) -> str:
    return (
        f"{kind.title} finds the learning rate by itself and takes yours as a factor on it:"
        f" with {factor:g}"
    )


class LearningRates:
    """Drives an optimizer along the schedule called `name`; a step's rate depends on its number
    alone. Every group keeps its own highest rate.

    Schedule-Free gets the warm-up only.
    """

    def __init__(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        *,
        warmup_steps: int,
        total_steps: int,
        cycles: int = 3,
        power: float = 2.0,
    ) -> None:
        self._curve = "constant" if is_schedule_free(optimizer) else name
        self._optimizer = optimizer
        self._warmup_steps = warmup_steps
        self._total_steps = total_steps
        self._cycles = cycles
        self._power = power
        self._highest = [group["lr"] for group in optimizer.param_groups]
        learning_rate_factor(name, 0, warmup_steps, total_steps)  # refuses an unknown name now

    def set(self, step: int) -> None:
        """Give every group its rate for `step`, counted from 0; where the optimizer takes none, it
        stays None.
        """
        factor = learning_rate_factor(
            self._curve,
            step,
            self._warmup_steps,
            self._total_steps,
            cycles=self._cycles,
            power=self._power,
        )
        for group, highest in zip(self._optimizer.param_groups, self._highest, strict=True):
            group["lr"] = None if highest is None else highest * factor
