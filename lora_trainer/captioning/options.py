"""A captioner's options: settings (settings/setting.py) that a request or the command line gives
for one captioning job. They are read more strictly than those of a training run, text just as it is
typed, and refused in sentences of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.text import is_plain_text
from ..settings.setting import (
    BOOLEAN_WORDS,
    Choice,
    Setting,
    SettingValue,
    WrittenSettings,
)

LONGEST_TEXT = 4000  # characters
_TYPE_NAMES = {bool: "bool", int: "int", float: "float", str: "text"}

OptionValues: TypeAlias = Mapping[str, Any]
"""A captioner's options by name, each checked and of its own type."""


class ChoiceView(TypedDict):
    value: str
    title: str
    help: str


class _Option(TypedDict):
    name: str
    title: str
    help: str
    type: str
    default: SettingValue


class OptionView(_Option, total=False):
    """An option as JSON; range, step, choices and the condition only where there are some."""

    minimum: float
    maximum: float
    step: float
    choices: list[ChoiceView]
    only_if: dict[str, str]  # the value that another option must have


def batch_size_option(default: int, *, maximum: int) -> Setting:
    """Return the option of how many pictures a captioner takes at once."""
    return Setting(
        default,
        "Batch size",
        "Pictures looked at together; more is faster and needs more memory.",
        name="batch_size",
        minimum=1,
        maximum=maximum,
    )


def type_name(option: Setting) -> str:
    """Return an option's type for interfaces: bool, int, float, text or choice."""
    return "choice" if option.choices else _TYPE_NAMES[option.type]


def describe_option(option: Setting) -> OptionView:
    """Return what interfaces show of an option."""
    described: OptionView = {
        "name": option.name,
        "title": option.title,
        "help": option.help,
        "type": type_name(option),
        "default": option.default,
    }
    if option.minimum is not None:
        described["minimum"] = option.minimum
    if option.maximum is not None:
        described["maximum"] = option.maximum
    if option.step is not None:
        described["step"] = option.step
    if option.choices:
        described["choices"] = [_describe_choice(choice) for choice in option.choices]
    for condition in option.effective_when:
        described["only_if"] = {name: values[0] for name, values in _one_of(condition).items()}
    return described


def _describe_choice(choice: str) -> ChoiceView:
    if isinstance(choice, Choice):
        return {"value": str(choice), "title": choice.label, "help": choice.help}
    return {"value": choice, "title": choice, "help": ""}


def _one_of(condition: Mapping[str, tuple[str, ...] | bool]) -> dict[str, tuple[str, ...]]:
    """Return the parts of a condition that name values of other options."""
    return {name: values for name, values in condition.items() if not isinstance(values, bool)}


def read_options(options: Sequence[Setting], values: WrittenSettings) -> OptionValues:
    """Return every option's value, its default where none is given; raises `Refused` for a bad
    value or an unknown name.
    """
    known = {option.name: option for option in options}
    if unknown := [name for name in values if name not in known]:
        raise Refused(
            f"There is no option {unknown[0]!r}; there are {', '.join(known)}.",
            field=unknown[0],
            code=ErrorCode.UNKNOWN_SETTING,
        )
    return {
        name: read_option(option, values[name]) if name in values else option.default
        for name, option in known.items()
    }


def read_option(option: Setting, value: object) -> SettingValue:
    """Return a value of an option's type; raises `Refused` naming the option."""
    if option.choices:
        return _read_choice(option, value)
    if option.type is str:
        return _read_text(option, value)
    if option.type is bool:
        return _read_bool(option, value)
    return _read_number(option, value)


def _read_text(option: Setting, value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not is_plain_text(value):
        raise _refused(option, f"is not text of at most {LONGEST_TEXT} characters")
    return value


def _read_choice(option: Setting, value: object) -> str:
    known = [str(choice) for choice in option.choices or ()]
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(repr(choice) for choice in known)
        raise _refused(option, f"is {str(value)[:80]!r}; it can be {listed}")
    return value


def _read_bool(option: Setting, value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in BOOLEAN_WORDS:
        raise _refused(option, f"is {str(value)[:80]!r}; it can be true or false")
    return BOOLEAN_WORDS[word]


def _read_number(option: Setting, value: object) -> float:
    number = _number(option.type, value)
    if number is None:
        expected = "whole number" if option.type is int else "number"
        raise _refused(option, f"is {str(value)[:80]!r}, not a {expected}")
    if not option.allows(number):
        limits = f"{option.minimum:g} to {option.maximum:g}"
        raise _refused(option, f"is {number:g}; it can be {limits}")
    return number


def _number(kind: type, value: object) -> float | None:
    """Return a number of this type; None for what is none, also for 3.5 as a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number: float = kind(value)
        return number if number == float(value) else None  # NaN equals nothing
    except (ValueError, OverflowError):
        return None


def _refused(option: Setting, found: str) -> Refused:
    return Refused(
        f"{option.title} ({option.name}) {found}.", field=option.name, code=ErrorCode.BAD_VALUE
    )
