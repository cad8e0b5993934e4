"""Checks the arguments of an optimizer that the user writes as text, such as "betas=0.9,0.99",
against the signature of its class.
"""

import ast
import inspect
import math
from typing import Any

from ..base.errors import ErrorCode, Refused
from ..settings.optimizer_arguments import split_arguments
from .optimizer_kinds import OptimizerArguments, OptimizerKind, import_class

# Arguments of constructors that are not the user's to set.
_INTERNAL = {
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
}
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}


def read_arguments(kind: OptimizerKind, text: str) -> OptimizerArguments:
    """Read "betas=0.9,0.99 decouple=True" as keyword arguments; raises `Refused` for one that the
    optimizer does not take.
    """
    try:
        written = split_arguments(text)
    except ValueError as error:
        raise Refused(
            f"Optimizer's own settings: {error}.",
            field="optimizer_args",
            code=ErrorCode.BAD_OPTIMIZER,
        ) from error
    accepted = _accepted(kind)
    return {name: _read_value(kind, accepted, name, value) for name, value in written}


def _accepted(kind: OptimizerKind) -> OptimizerArguments:
    """Return what an optimizer's constructor takes, with the defaults."""
    parameters = inspect.signature(import_class(kind)).parameters.values()
    return {
        parameter.name: kind.settings.get(parameter.name, parameter.default)
        for parameter in parameters
        if parameter.name not in _INTERNAL
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _read_value(kind: OptimizerKind, accepted: OptimizerArguments, name: str, text: str) -> object:
    if name not in accepted:
        instead = " The learning rate has a field of its own." if name == "lr" else ""
        raise Refused(
            f"Optimizer's own settings: {kind.title} takes no {name!r}.{instead} It takes:"
            f" {', '.join(sorted(accepted))}.",
            field="optimizer_args",
            code=ErrorCode.BAD_OPTIMIZER,
        )
    value: Any
    try:
        value = _WORDS[text.lower()] if text.lower() in _WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text  # no default is a string, so it is refused below
    default = accepted[name]
    if not _fits(value, default) or (name == "weight_decay" and value < 0):
        raise Refused(
            f"Optimizer's own settings: {name}={text[:60]} does not fit. Expected"
            f" {_describe_type(default)}, such as {name}={_as_written(default)}.",
            field="optimizer_args",
            code=ErrorCode.BAD_OPTIMIZER,
        )
    return tuple(value) if isinstance(value, list) else value


def _fits(value: object, default: object) -> bool:
    """Tell whether a value is of its default's type; where the default is None, a number, a bool or
    None is accepted.
    """
    if isinstance(default, bool):
        return isinstance(value, bool)
    if default is None:
        return value is None or isinstance(value, bool) or _is_number(value)
    if isinstance(default, (tuple, list)):
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(default)
            and all(_is_number(item) for item in value)
        )
    return _is_number(value) and _is_number(default)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _describe_type(default: object) -> str:
    if default is None:
        return "a number, True, False or None"
    if isinstance(default, bool):
        return "True or False"
    if isinstance(default, (tuple, list)):
        return f"{len(default)} numbers with commas between"
    return "a number"


def _as_written(default: object) -> str:
    return ",".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)
