"""Makes optimizers. Each that comes from a package is tried first with one real step on the run's
device.
"""

import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, cast

import torch

from ..base.errors import ErrorCode, Refused
from .learning_rates import check_rates
from .optimizer_arguments import read_arguments
from .optimizer_kinds import (
    KINDS,
    OptimizerArguments,
    OptimizerKind,
    describe_versions,
    import_class,
    is_installed,
    missing_package,
    optimizer_kind,
    pip_command,
    torch_version,
)
from .schedule_free import averaged_weights, is_schedule_free

# Given with each parameter group: in the constructor, prodigyopt and dadaptation print a line.
_GROUP_SETTINGS = ("weight_decay", "decouple")


class OptimizerChoice(TypedDict):
    """An optimizer as JSON; `needs` is the command that installs it, "" for torch's own."""

    name: str
    title: str
    available: bool
    needs: str


def optimizer_choices() -> list[OptimizerChoice]:
    """Describe every optimizer; imports nothing."""
    return [
        OptimizerChoice(
            name=name,
            title=kind.title,
            available=is_installed(kind),
            needs=pip_command(kind) if kind.package else "",
        )
        for name, kind in KINDS.items()
    ]


def make_optimizer(
    name: str,
    groups: Mapping[str, list[torch.nn.Parameter]],
    *,
    learning_rates: Mapping[str, float],
    weight_decay: float,
    arguments: str = "",
    own: Mapping[str, Mapping[str, float]] | None = None,
) -> torch.optim.Optimizer:
    """Make the optimizer called `name` for named groups of parameters, each with its own learning
    rate; raises `Refused` as `check_with_step`.

    `arguments` are the user's own, as "betas=0.9,0.99 d_coef=2"; they win over `weight_decay`.
    Every param_group carries its `name`, and what `own` says of it alone: another `weight_decay`;
    `factor`, its rate in terms of the usual one.
    """
    kind, rates = optimizer_kind(name), {group: learning_rates[group] for group in groups}
    check_rates(name, rates)
    first = next(parameter for group in groups.values() for parameter in group)
    check_with_step(name, arguments, first.device)
    optimizer = _build(kind, groups, rates, weight_decay, read_arguments(kind, arguments))
    for group in optimizer.param_groups:
        group.update((own or {}).get(group["name"], {}))
    return optimizer


def check_with_step(name: str, arguments: str, device: torch.device) -> None:
    """Take one real step with a toy parameter on `device`; raises `Refused` when the package is
    missing or the step fails, with the reason.

    torch's own AdamW, as it comes, is not asked.
    """
    kind = optimizer_kind(name)
    if not (kind.package or arguments.strip()):
        return
    if arguments.strip():
        check_with_step(name, "", device)  # what fails from here on is the arguments' doing
    settings = read_arguments(kind, arguments)
    try:
        problem = _try(kind, settings, device)
    except Exception as error:  # whatever a package raises is the reason we are after
        problem = f"{type(error).__name__}: {error}"
    if problem and arguments.strip():
        raise Refused(
            f"Optimizer's own settings: with {arguments.strip()!r} a step of {kind.title} fails"
            f" ({problem}). Mend or remove them.",
            field="optimizer_args",
            code=ErrorCode.BAD_OPTIMIZER,
        )
    if problem:
        raise Refused(
            f"Optimizer: a step of {kind.title} fails on {device.type}"
            f" ({problem}){describe_versions(kind)}."
            " Choose another optimizer, such as adamw.",
            field="optimizer",
            code=ErrorCode.BAD_OPTIMIZER,
        )


def check_without_step(name: str, arguments: str) -> None:
    """Refuse what can be seen without a step: a package that is not there, arguments that the
    optimizer does not take.

    Quick enough for every key press. Only what is imported already or in no time is asked for its
    arguments.
    """
    kind = optimizer_kind(name)
    if not is_installed(kind):
        raise missing_package(kind)
    if arguments.strip() and (kind.module in sys.modules or not kind.loads_slowly):
        read_arguments(kind, arguments)


def _build(
    kind: OptimizerKind,
    groups: Mapping[str, list[torch.nn.Parameter]],
    rates: Mapping[str, float],
    weight_decay: float,
    arguments: OptimizerArguments,
) -> torch.optim.Optimizer:
    settings = {"weight_decay": weight_decay, **kind.settings, **arguments}
    if _takes_fused(kind) and not settings.get("foreach"):
        parameters = [parameter for group in groups.values() for parameter in group]
        settings.setdefault("fused", _has_fused(parameters))
    group_settings = {key: settings.pop(key) for key in _GROUP_SETTINGS if key in settings}
    relative_step = settings.get("relative_step", False)
    param_groups = []
    for name, parameters in groups.items():
        rate = None if relative_step else rates[name]
        param_group = {"params": list(parameters), "name": name, "lr": rate, **group_settings}
        if not rates[name]:  # prodigyopt and dadaptation decay what has the rate 0, too
            param_group["weight_decay"] = 0.0
        param_groups.append(param_group)
    highest = None if relative_step else max(rates.values())
    optimizer = import_class(kind)(param_groups, lr=highest, **settings)
    if is_schedule_free(optimizer):
        cast(Any, optimizer).train()
    return optimizer


def _try(kind: OptimizerKind, settings: OptimizerArguments, device: torch.device) -> str:
    """Take one step of 4096 numbers, from which on bitsandbytes uses 8 bits; returns what is wrong
    with the outcome, "" if nothing.
    """
    toy = torch.nn.Parameter(torch.linspace(-0.01, 0.01, 4096, device=device).reshape(64, 64))
    toy.grad = torch.linspace(-1.0, 1.0, 4096, device=device).reshape(64, 64)
    before = toy.detach().clone()
    rate = 1.0 if kind.finds_rate else 1e-3
    optimizer = _build(kind, {"toy": [toy]}, {"toy": rate}, 0.0, settings)
    optimizer.step()
    after = averaged_weights(optimizer, optimizer.param_groups[0], toy)
    if not torch.isfinite(after).all():
        return "it gave numbers that are not finite"
    return "it changed nothing" if torch.equal(after, before) else ""


def _takes_fused(kind: OptimizerKind) -> bool:
    """Tell whether an optimizer of torch's can update all parameters in one kernel."""
    if kind.module != "torch.optim":
        return False
    return "fused" in inspect.signature(import_class(kind)).parameters


def _has_fused(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Tell whether torch has one kernel for all parameters on their device."""
    places = {parameter.device.type for parameter in parameters}
    return places == {"cuda"} or (places == {"cpu"} and torch_version() >= (2, 4))
