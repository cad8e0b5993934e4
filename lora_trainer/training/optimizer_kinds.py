"""The optimizers there are: the package that each comes from, whether it is installed, and the
learning rates that suit it. A new optimizer is an entry in `KINDS`.

All but AdamW come from packages that are imported when they are first used.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from ..base.errors import ErrorCode, Refused

OptimizerArguments: TypeAlias = Mapping[str, Any]
"""Keyword arguments of an optimizer's constructor."""


@dataclasses.dataclass(frozen=True)
class OptimizerKind:
    """An optimizer.

    `package` is pip's name of the package, "" for torch; `settings` replace defaults of the package
    that do not suit. `finds_rate`: it finds the learning rate itself. `loads_slowly`: importing it
    takes seconds, as it loads libraries for the GPU. Learning rates below `lowest_rate` change next
    to nothing, those from `too_high_rate` on break the pictures.
    """

    title: str
    module: str
    type_name: str
    package: str = ""
    settings: OptimizerArguments = dataclasses.field(default_factory=dict)
    finds_rate: bool = False
    loads_slowly: bool = False
    usual_rate: float = 1e-4
    lowest_rate: float = 1e-6
    too_high_rate: float = 3e-3


@dataclasses.dataclass(frozen=True)
class RateFinder(OptimizerKind):
    """An optimizer that finds the learning rate itself; the setting is a factor on it."""

    finds_rate: bool = True
    usual_rate: float = 1.0
    lowest_rate: float = 0.1
    too_high_rate: float = 5.0


KINDS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind("AdamW", "torch.optim", "AdamW"),
    "adamw8bit": OptimizerKind(
        "AdamW 8-bit", "bitsandbytes.optim", "AdamW8bit", "bitsandbytes", loads_slowly=True
    ),
    "lion": OptimizerKind(
        "Lion",
        "lion_pytorch",
        "Lion",
        "lion-pytorch",
        usual_rate=3e-5,
        lowest_rate=1e-7,
        too_high_rate=1e-4,
    ),
    "adafactor": OptimizerKind(
        "Adafactor",
        "transformers.optimization",
        "Adafactor",
        "transformers",
        dict(relative_step=False, scale_parameter=False, warmup_init=False),
    ),
    "prodigy": RateFinder("Prodigy", "prodigyopt", "Prodigy", "prodigyopt"),
    "dadaptation": RateFinder(
        "D-Adaptation", "dadaptation", "DAdaptAdam", "dadaptation", dict(decouple=True)
    ),
    "schedulefree": OptimizerKind(
        "Schedule-Free AdamW",
        "schedulefree",
        "AdamWScheduleFree",
        "schedulefree",
        usual_rate=5e-4,
        too_high_rate=3e-2,
    ),
}


def optimizer_kind(name: str) -> OptimizerKind:
    """Return the optimizer of a name; raises ValueError for an unknown one."""
    if name not in KINDS:
        raise ValueError(f"optimizer is {name!r}; expected one of {', '.join(KINDS)}")
    return KINDS[name]


def torch_version() -> tuple[int, ...]:
    """Return torch's major and minor version."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def is_installed(kind: OptimizerKind) -> bool:
    """Tell whether an optimizer's package is there, without importing it."""
    return importlib.util.find_spec(kind.module.split(".")[0]) is not None


def import_class(kind: OptimizerKind) -> Callable[..., torch.optim.Optimizer]:
    """Import an optimizer's class; raises `Refused` when its package is missing or does not work
    here.
    """
    try:
        return getattr(importlib.import_module(kind.module), kind.type_name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == kind.module.split(".")[0]:
            raise missing_package(kind) from error
        reason: Exception = error
    except Exception as error:  # a package made for another torch may raise anything
        reason = error
    raise Refused(
        f"Optimizer: {kind.title} cannot be used: the package {kind.package} fails to load"
        f" ({type(reason).__name__}: {reason}){describe_versions(kind)}. This may help:"
        f" {pip_command(kind)}",
        field="optimizer",
        code=ErrorCode.NO_PACKAGE,
    ) from reason


def missing_package(kind: OptimizerKind) -> Refused:
    """Return the refusal of an optimizer whose package is not installed."""
    return Refused(
        f"Optimizer: {kind.title} needs the package {kind.package}, which is not installed. Install"
        f" it with: {pip_command(kind)}",
        field="optimizer",
        code=ErrorCode.NO_PACKAGE,
    )


def pip_command(kind: OptimizerKind) -> str:
    """Return the command that adds a package to this Python and changes nothing else: torch and the
    like are there.
    """
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    package = kind.package
    if package == "bitsandbytes" and torch_version() < (2, 4):
        package = "bitsandbytes==0.45.5"
    return f"{python} -m pip install --no-deps {package}"


def describe_versions(kind: OptimizerKind) -> str:
    """Return the versions of package and torch for an error message; "" for torch's own."""
    if not kind.package:
        return ""
    try:
        version = importlib.metadata.version(kind.package)
    except importlib.metadata.PackageNotFoundError:
        return ""
    return f"; {kind.package} {version}, torch {torch.__version__}"
