"""Optimizers: which there are, from which package, made and tried out, and the learning rates they
are driven with.

All but AdamW come from packages that are imported when they are asked for. Each is tried with one
real step on the run's device first.
"""

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..base.errors import Refused
from ..settings.remedies import Remark, Remedy, details_of, set_to
from .schedules import learning_rate_factor


@dataclasses.dataclass(frozen=True)
class _Kind:
    """An optimizer. `package` is pip's name of what it is in, "" for torch; `settings` are ours
    where the package's own defaults do not suit. `loads_slowly`: importing it takes seconds, as it
    loads libraries for the GPU. Learning rates below `lowest_rate` teach next to nothing, those
    from `too_high_rate` on break the pictures.
    """

    title: str
    module: str
    type_name: str
    package: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finds_rate: bool = False
    loads_slowly: bool = False
    usual_rate: float = 1e-4
    lowest_rate: float = 1e-6
    too_high_rate: float = 3e-3


_FACTOR = dict(usual_rate=1.0, lowest_rate=0.1, too_high_rate=5.0)  # on a rate that is found
KINDS = {
    "adamw": _Kind("AdamW", "torch.optim", "AdamW"),
    "adamw8bit": _Kind(
        "AdamW 8-bit", "bitsandbytes.optim", "AdamW8bit", "bitsandbytes", loads_slowly=True
    ),
    "lion": _Kind(
        "Lion",
        "lion_pytorch",
        "Lion",
        "lion-pytorch",
        usual_rate=3e-5,
        lowest_rate=1e-7,
        too_high_rate=1e-4,
    ),
    "adafactor": _Kind(
        "Adafactor",
        "transformers.optimization",
        "Adafactor",
        "transformers",
        dict(relative_step=False, scale_parameter=False, warmup_init=False),
    ),
    "prodigy": _Kind("Prodigy", "prodigyopt", "Prodigy", "prodigyopt", finds_rate=True, **_FACTOR),
    "dadaptation": _Kind(
        "D-Adaptation",
        "dadaptation",
        "DAdaptAdam",
        "dadaptation",
        dict(decouple=True),
        finds_rate=True,
        **_FACTOR,
    ),
    "schedulefree": _Kind(
        "Schedule-Free AdamW",
        "schedulefree",
        "AdamWScheduleFree",
        "schedulefree",
        usual_rate=5e-4,
        too_high_rate=3e-2,
    ),
}
_OURS = {
    "params",
    "lr",
    "name",
    "args",
    "optim_bits",
    "is_paged",
    "fsdp_in_use",
    "capturable",
    "differentiable",
    "maximize",
}  # not the user's to set
_FIELDS = {"unet": "learning_rate", "text_encoder": "text_encoder_lr"}
_OF_GROUPS = (
    "weight_decay",
    "decouple",
)  # given with each group: told in the constructor, prodigyopt and dadaptation print a line


def optimizer_choices() -> list[dict[str, Any]]:
    """Return every optimizer as `{name, title, available, needs}`; `needs` is the line that
    installs it, "" for torch's own. Imports nothing.
    """
    return [
        dict(
            name=name,
            title=kind.title,
            available=_is_there(kind),
            needs=_pip_line(kind) if kind.package else "",
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
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """Make the optimizer called `name` for named groups of parameters, each with its own learning
    rate; raises `Refused` as `check_optimizer`.

    `arguments` are the user's own, as "betas=0.9,0.99 d_coef=2"; they win over `weight_decay`.
    Every param_group carries its `name`, and what `own` says of it alone: another `weight_decay`;
    `factor`, its rate in terms of the usual one.
    """
    kind, rates = _kind(name), {group: learning_rates[group] for group in groups}
    check_rates(name, rates)
    check_optimizer(
        name, arguments, next(parameter for group in groups.values() for parameter in group).device
    )
    optimizer = _build(kind, groups, rates, weight_decay, _read_arguments(kind, arguments))
    for group in optimizer.param_groups:
        group.update((own or {}).get(group["name"], {}))
    return optimizer


def check_optimizer(name: str, arguments: str, device: torch.device) -> None:
    """Take one real step with a toy parameter on `device`; raises `Refused` when the package is
    missing or the step fails, with the reason.

    torch's own AdamW, as it comes, is not asked.
    """
    kind = _kind(name)
    if not (kind.package or arguments.strip()):
        return
    if arguments.strip():
        check_optimizer(name, "", device)  # what fails from here on is the arguments' doing
    settings = _read_arguments(kind, arguments)
    try:
        problem = _try(kind, settings, device)
    except Exception as error:  # whatever a package raises is the reason we are after
        problem = f"{type(error).__name__}: {error}"
    if problem and arguments.strip():
        raise Refused(
            f"Optimizer's own settings: with {arguments.strip()!r} a step of {kind.title} fails"
            f" ({problem}). Mend or remove them.",
            field="optimizer_args",
            code="bad_optimizer",
        )
    if problem:
        raise Refused(
            f"Optimizer: a step of {kind.title} fails on {device.type} ({problem}){_about(kind)}."
            " Choose another optimizer, such as adamw.",
            field="optimizer",
            code="bad_optimizer",
        )


def check_settings(name: str, arguments: str) -> None:
    """Refuse what can be seen without a step: a package that is not there, arguments that the
    optimizer does not take.

    Quick enough for every key press. Only what is imported already or in no time is asked for its
    arguments.
    """
    kind = _kind(name)
    if not _is_there(kind):
        raise _missing(kind)
    if arguments.strip() and (kind.module in sys.modules or not kind.loads_slowly):
        _read_arguments(kind, arguments)


def check_rates(name: str, learning_rates: Mapping[str, float]) -> None:
    """Refuse learning rates, by group that learns, that nothing would learn with or that the
    optimizer cannot tell apart.
    """
    kind, learning = _kind(name), {group: rate for group, rate in learning_rates.items() if rate}
    if not learning:
        raise Refused(
            "The learning rate is 0, so nothing would learn. Give the UNet or the text encoder"
            " one.",
            field="text_encoder_lr",
            code="bad_rates",
        )
    if kind.finds_rate and len(set(learning.values())) > 1:
        raise Refused(
            f"{kind.title} finds one learning rate for everything, and"
            f" {' and '.join(f'{rate:g} ({group})' for group, rate in learning.items())} differ."
            " Make Learning rate and Learning rate, text encoder the same, usually 1; or 0 for the"
            " text encoder. It takes no LoRA+ ratio but 1, and no Learning rates of blocks but 0.",
            field="text_encoder_lr",
            code="bad_rates",
            details=details_of(
                Remedy(
                    "Set both to 1", {_FIELDS[group]: 1.0 for group in learning if group in _FIELDS}
                )
            ),
        )


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the usual learning rate now, as the first group shows it, with what the optimizer
    itself makes of it: Prodigy's d * lr.
    """
    group = optimizer.param_groups[0]
    return _rate_of(optimizer, group) / (group.get("factor") or 1.0)


def _rate_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float:
    if group["lr"] is None:  # Adafactor with relative_step
        state = next(
            (
                optimizer.state[parameter]
                for parameter in group["params"]
                if parameter in optimizer.state
            ),
            None,
        )
        return float(optimizer._get_lr(group, state)) if state else 0.0
    if "scheduled_lr" in group:  # Schedule-Free, with a warm-up of its own
        return float(group["scheduled_lr"])
    return float(group["d"] * group["lr"]) if "d" in group else float(group["lr"])


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    return "weight_lr_power" in optimizer.param_groups[0]


def averaged(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: torch.nn.Parameter
) -> torch.Tensor:
    """Return what is to be used of a parameter: with Schedule-Free its averaged point x, computed
    from y, where gradients are taken, and z as x = y + (1 - 1/beta1)(z - y) (arXiv 2405.15682);
    else the parameter itself. Nothing is changed.
    """
    z = optimizer.state.get(parameter, {}).get("z") if "weight_lr_power" in group else None
    return (
        parameter.detach() if z is None else parameter.detach().lerp(z, 1 - 1 / group["betas"][0])
    )


def remarks_on(name: str, *, learning_rates: Mapping[str, float], scheduler: str) -> list[str]:
    """Say what is unusual about settings that are possible, in sentences for the user."""
    remarks = _far_off(_kind(name), {group: rate for group, rate in learning_rates.items() if rate})
    if name == "schedulefree" and scheduler != "constant":
        remarks.append(
            Remark(
                f"Schedule-Free needs no schedule: {scheduler} is not used, the warm-up is.",
                set_to("scheduler", "constant"),
            )
        )
    return remarks


def _far_off(kind: _Kind, rates: Mapping[str, float]) -> list[str]:
    """Say so where learning rates of what learns, none of them 0, are not ones for this
    optimizer.
    """
    highest = max(rates.values(), default=math.inf)
    low = highest < kind.lowest_rate
    wrong = [group for group, rate in rates.items() if low or rate >= kind.too_high_rate]
    if not wrong:
        return []
    if kind.finds_rate:
        sentence = (
            f"{kind.title} finds the learning rate by itself and takes yours as a factor on it:"
            f" with {highest:g} "
        )
        sentence += "it learns next to nothing." if low else "its steps are too large."
    elif low:
        sentence = (
            f"A learning rate of {highest:g} is far too low for {kind.title}: it learns next to"
            " nothing."
        )
    elif highest >= 0.1:
        sentence = (
            f"A learning rate of {highest:g} is for Prodigy and D-Adaptation; {kind.title} will"
            " break the pictures with it."
        )
    elif kind.title == "Lion":
        sentence = (
            "Lion's steps are larger than AdamW's: a third to a tenth of the learning rate is"
            " usual."
        )
    else:
        sentence = (
            f"A learning rate of {highest:g} is far too high for {kind.title}: the pictures will"
            " fall apart."
        )
    plural = "s" * (len(wrong) > 1)
    remedy = Remedy(
        f"Set the learning rate{plural} to {kind.usual_rate:g}",
        {_FIELDS[group]: kind.usual_rate for group in wrong},
    )
    return [Remark(f"{sentence} {kind.usual_rate:g} is usual.", remedy)]


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
        learning_rate_factor(
            name, 0, warmup_steps, total_steps
        )  # an unknown name is refused now, not at the first step
        self._curve = "constant" if is_schedule_free(optimizer) else name
        self._optimizer, self._steps, self._form = (
            optimizer,
            (warmup_steps, total_steps),
            dict(cycles=cycles, power=power),
        )
        self._highest = [group["lr"] for group in optimizer.param_groups]

    def set(self, step: int) -> float:
        """Give every group its rate for `step`, counted from 0, and return the first group's; 0
        where the optimizer takes none.
        """
        factor = learning_rate_factor(self._curve, step, *self._steps, **self._form)
        for group, highest in zip(self._optimizer.param_groups, self._highest, strict=False):
            group["lr"] = None if highest is None else highest * factor
        return self._optimizer.param_groups[0]["lr"] or 0.0


# --- Made and tried -------------------------------------------------------------------------------


def _kind(name: str) -> _Kind:
    if name not in KINDS:
        raise ValueError(f"optimizer is {name!r}; expected one of {', '.join(KINDS)}")
    return KINDS[name]


def _build(
    kind: _Kind,
    groups: Mapping[str, list[torch.nn.Parameter]],
    rates: Mapping[str, float],
    weight_decay: float,
    arguments: Mapping[str, Any],
) -> torch.optim.Optimizer:
    settings = {"weight_decay": weight_decay, **kind.settings, **arguments}
    if kind.module == "torch.optim" and not settings.get("foreach"):
        settings.setdefault(
            "fused", _has_fused(parameter for group in groups.values() for parameter in group)
        )
    given = {key: settings.pop(key) for key in _OF_GROUPS if key in settings}
    relative = settings.get("relative_step", False)
    described = [
        {
            "params": list(parameters),
            "name": group,
            "lr": None if relative else rates[group],
            **given,
            "weight_decay": given["weight_decay"] if rates[group] else 0.0,
        }  # prodigyopt and dadaptation decay what has the rate 0, too
        for group, parameters in groups.items()
    ]
    optimizer = _type(kind)(described, lr=None if relative else max(rates.values()), **settings)
    if is_schedule_free(optimizer):
        optimizer.train()
    return optimizer


def _try(kind: _Kind, settings: Mapping[str, Any], device: torch.device) -> str:
    """Take one step of 4096 numbers, from which on bitsandbytes uses 8 bits; returns what is wrong
    with the outcome, "" if nothing.
    """
    toy = torch.nn.Parameter(torch.linspace(-0.01, 0.01, 4096, device=device).reshape(64, 64))
    before, toy.grad = (
        toy.detach().clone(),
        torch.linspace(-1.0, 1.0, 4096, device=device).reshape(64, 64),
    )
    optimizer = _build(
        kind, {"toy": [toy]}, {"toy": 1.0 if kind.finds_rate else 1e-3}, 0.0, settings
    )
    optimizer.step()
    after = averaged(optimizer, optimizer.param_groups[0], toy)
    if not torch.isfinite(after).all():
        return "it gave numbers that are not finite"
    return "it changed nothing" if torch.equal(after, before) else ""


def _has_fused(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Tell whether torch has one kernel for all parameters where they are."""
    places = {parameter.device.type for parameter in parameters}
    return places == {"cuda"} or (places == {"cpu"} and _torch_version() >= (2, 4))


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


# --- Packages -------------------------------------------------------------------------------------


def _is_there(kind: _Kind) -> bool:
    return importlib.util.find_spec(kind.module.split(".")[0]) is not None


def _type(kind: _Kind) -> type[torch.optim.Optimizer]:
    """Import an optimizer's class; raises `Refused` when its package is missing or does not work
    here.
    """
    try:
        return getattr(importlib.import_module(kind.module), kind.type_name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == kind.module.split(".")[0]:
            raise _missing(kind) from error
        reason = error
    except Exception as error:  # a package made for another torch may raise anything
        reason = error
    raise Refused(
        f"Optimizer: {kind.title} cannot be used: the package {kind.package} fails to load"
        f" ({type(reason).__name__}: {reason}){_about(kind)}. This may help: {_pip_line(kind)}",
        field="optimizer",
        code="no_package",
    ) from reason


def _missing(kind: _Kind) -> Refused:
    return Refused(
        f"Optimizer: {kind.title} needs the package {kind.package}, which is not installed. Install"
        f" it with: {_pip_line(kind)}",
        field="optimizer",
        code="no_package",
    )


def _pip_line(kind: _Kind) -> str:
    """Return the command that adds a package to this Python and changes nothing else: torch and the
    like are there.
    """
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    package = (
        "bitsandbytes==0.45.5"
        if kind.package == "bitsandbytes" and _torch_version() < (2, 4)
        else kind.package
    )
    return f"{python} -m pip install --no-deps {package}"


def _about(kind: _Kind) -> str:
    """Name the versions that do not get along; "" for torch's own."""
    try:
        return (
            f"; {kind.package} {importlib.metadata.version(kind.package)}, torch"
            f" {torch.__version__}"
            if kind.package
            else ""
        )
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- The user's arguments -------------------------------------------------------------------------

_NAME = re.compile(r"(?:^|(?<=[\s,;]))([A-Za-z_]\w*)\s*=")
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}


def _read_arguments(kind: _Kind, text: str) -> dict[str, Any]:
    """Read "betas=0.9,0.99 decouple=True" as keyword arguments; raises `Refused` for one that the
    optimizer does not take.
    """
    found = list(_NAME.finditer(text))
    if text[: found[0].start() if found else None].strip():
        raise Refused(
            f"Optimizer's own settings: {text.strip()[:60]!r} is not of the form name=value"
            " name=value.",
            field="optimizer_args",
            code="bad_optimizer",
        )
    ends = [*(match.start() for match in found[1:]), len(text)]
    accepted = _accepted(kind)
    return {
        match[1]: _read_value(kind, accepted, match[1], text[match.end() : end].strip(" \t\r\n,;"))
        for match, end in zip(found, ends, strict=False)
    }


def _accepted(kind: _Kind) -> dict[str, Any]:
    """Return what an optimizer's constructor takes, with the defaults."""
    parameters = inspect.signature(_type(kind)).parameters.values()
    return {
        parameter.name: kind.settings.get(parameter.name, parameter.default)
        for parameter in parameters
        if parameter.name not in _OURS
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _read_value(kind: _Kind, accepted: Mapping[str, Any], name: str, text: str) -> Any:
    if name not in accepted:
        instead = " The learning rate has a field of its own." if name == "lr" else ""
        raise Refused(
            f"Optimizer's own settings: {kind.title} takes no {name!r}.{instead} It takes:"
            f" {', '.join(sorted(accepted))}.",
            field="optimizer_args",
            code="bad_optimizer",
        )
    try:
        value = _WORDS[text.lower()] if text.lower() in _WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text  # no default is a string, so it is refused below
    default = accepted[name]
    if not _fits(value, default) or (name == "weight_decay" and value < 0):
        raise Refused(
            f"Optimizer's own settings: {name}={text[:60]} does not fit. Expected"
            f" {_form_of(default)}, such as {name}={_as_written(default)}.",
            field="optimizer_args",
            code="bad_optimizer",
        )
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, default: Any) -> bool:
    """Tell whether a value is of its default's kind; where that is None, a number, yes or no, or
    None will do.
    """
    if default is None or isinstance(default, bool):
        return isinstance(value, bool) or (default is None and (value is None or _is_number(value)))
    if isinstance(default, (tuple, list)):
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(default)
            and all(_is_number(item) for item in value)
        )
    return _is_number(value) and _is_number(default)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _form_of(default: Any) -> str:
    if default is None:
        return "a number, True, False or None"
    if isinstance(default, bool):
        return "True or False"
    return (
        f"{len(default)} numbers with commas between"
        if isinstance(default, (tuple, list))
        else "a number"
    )


def _as_written(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)
