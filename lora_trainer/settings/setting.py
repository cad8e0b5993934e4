"""Setting: everything that is known of one setting, in one record.

TrainConfig declares them (config.py). The command line, the page's form, the API's schema, the
checks of requests, resuming, presets, a LoRA's metadata and docs/settings.md derive from here.
"""

import dataclasses
import difflib
import enum
import functools
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.text import is_plain_text, number

LONGEST_TEXT = 20_000  # characters of a setting; lists of blocks are read at every plan

SettingValue: TypeAlias = bool | int | float | str
SettingValues: TypeAlias = dict[str, SettingValue]
"""Settings of a TrainConfig by our names, checked."""
WrittenSettings: TypeAlias = Mapping[str, Any]
"""Settings by name as a file, a request or another program has them. Names and values may be
anything; TrainConfig.parse checks them."""
Requirement = tuple[str, ...] | bool
"""One of these values; or whether the setting is on: anything but "", 0, false or "off"."""
Condition = Mapping[str, Requirement]
"""What other settings have to be, by name; all of it has to hold."""

BOOLEAN_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_TYPE_PHRASES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_METADATA_KEY = "setting"


class ChoiceDescription(TypedDict):
    """A choice that may have to be installed first, as JSON."""

    value: str
    title: str
    needs: str  # the command that installs what is missing, else ""


class SettingDescription(TypedDict):
    """What interfaces show of a setting, as JSON."""

    name: str
    type: str
    default: SettingValue
    title: str
    help: str
    group: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...] | list[ChoiceDescription] | None
    unit: str
    kohya: tuple[str, ...]
    also: tuple[str, ...]


class OnResume(enum.Enum):
    """What another value of a setting means to a run that is resumed."""

    FREE = "free"
    """May change: the user changes it on purpose, and nothing that was learned is lost."""
    ASK = "ask"
    """Makes another run of it: refused until the user says to go on anyway."""
    FATAL = "fatal"
    """Makes the training state worthless: always refused."""
    BY_EFFECT = "by effect"
    """Compared by what it leads to: the pictures, the captions, the base model, the file."""


class PathKind(enum.Enum):
    """Which place a setting names."""

    INPUT = "input"
    """A file or folder that is read."""
    OUTPUT = "output"
    """A folder that is written to."""
    DATASET = "dataset"
    """A folder of pictures, or the name of a data set in the library."""
    LORA = "lora"
    """A LoRA file that is read, or the name of one in the LoRA folder."""


class Choice(str):
    """One of a setting's choices that has a label and a help of its own; it is stored as text."""

    label: str
    help: str

    def __new__(cls, value: str, label: str, help: str = "") -> "Choice":
        choice = super().__new__(cls, value)
        choice.label = label
        choice.help = help
        return choice


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a training run, or one option of a captioner. Its type is that of `default`.

    Args:
        group: the part of the page and of the reference that it stands in, a key of GROUPS; "" for
            a captioner's option, which stands with its captioner.
        minimum, maximum: the range of a number, both included.
        step: by how much its field on the page counts up.
        choices: the texts that it can be; a `Choice` where the text does not say it all.
        kohya: kohya's names for it, which are accepted as they are.
        also: how people and other programs write it besides.
        kohya_forms: options of kohya's that say it in another form, for the reference only.
        effective_when: it has an effect when one of these conditions holds; () is always.
        path: which place it names, if any.
        kept_in_lora: whether a LoRA's metadata holds it, and it may be taken over from there. Not
            names, places, or what only suits a machine: files come from strangers.
        kept_in_presets: whether a preset may hold it; not names, pictures and places.
        beside: the setting that it follows on the page, in the same row.
        hidden: whether the page has no field for it.
        name: that of the field, which `settings_of` fills in; given for a captioner's option.
    """

    default: SettingValue
    title: str
    help: str
    _: dataclasses.KW_ONLY
    group: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | None = None
    unit: str = ""
    kohya: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    kohya_forms: tuple[str, ...] = ()
    effective_when: tuple[Condition, ...] = ()
    on_resume: OnResume = OnResume.ASK
    path: PathKind | None = None
    kept_in_lora: bool = True
    kept_in_presets: bool = True
    beside: str = ""
    hidden: bool = False
    name: str = ""

    def field(self) -> Any:
        """Declare this setting as a field of a dataclass: `rank: int = Setting(…).field()`."""
        return dataclasses.field(default=self.default, metadata={_METADATA_KEY: self})

    @property
    def type(self) -> type:
        return type(self.default)

    @property
    def has_one_choice(self) -> bool:
        """Whether there is nothing to choose."""
        return self.choices is not None and len(self.choices) == 1

    def describe(self) -> SettingDescription:
        return {
            "name": self.name,
            "type": self.type.__name__,
            "default": self.default,
            "title": self.title,
            "help": self.help,
            "group": self.group,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "choices": self.choices,
            "unit": self.unit,
            "kohya": self.kohya,
            "also": self.also,
        }

    def range_phrase(self) -> str:
        """Return "1 to 256 px"; "" for what has no range."""
        if self.minimum is None or self.maximum is None:
            return ""
        limits = f"{self.minimum:.10g} to {self.maximum:.10g}"
        return f"{limits} {self.unit}" if self.unit else limits

    def read(self, value: object) -> SettingValue:
        """Convert a value out of a file, a request or the command line to the setting's type.

        Raises `Refused` with what was found and what was expected.
        """
        converted = _convert(self.type, value)
        if converted is None:
            raise self._refused(f"{shortened(value)} is not {_TYPE_PHRASES[self.type]}.")
        if isinstance(converted, str):
            self._check_text(converted)
        elif not self.allows(converted):
            limits = f"{self.minimum:g} to {self.maximum:g}"
            raise self._refused(f"{shortened(value)} is out of range. Use {limits}.")
        return converted

    def allows(self, number: float) -> bool:
        """Return whether a number is in the range, if there is one."""
        if self.minimum is None or self.maximum is None:
            return True
        return self.minimum <= number <= self.maximum

    def _check_text(self, text: str) -> None:
        if len(text) > LONGEST_TEXT:
            found = f"{len(text):,} characters are too many"
            raise self._refused(f"{found}. Use at most {LONGEST_TEXT:,}.")
        if self.choices and text not in self.choices:
            near = difflib.get_close_matches(text, self.choices, n=1)
            guess = f" Did you mean {near[0]}?" if near else ""
            listed = ", ".join(self.choices)
            raise self._refused(f"{shortened(text)} is not known. Choose one of: {listed}.{guess}")

    def _refused(self, sentence: str) -> Refused:
        return Refused(f"{self.title}: {sentence}", field=self.name, code=ErrorCode.BAD_VALUE)


def settings_of(config_class: type) -> Mapping[str, Setting]:
    """Return the settings that a dataclass declares, by name, in their order."""
    return _declared_in(config_class)


@functools.cache  # not above: type checkers take no dataclass's type for hashable
def _declared_in(config_class: type) -> Mapping[str, Setting]:
    return {
        field.name: dataclasses.replace(field.metadata[_METADATA_KEY], name=field.name)
        for field in dataclasses.fields(config_class)
    }


def shortened(value: object) -> str:
    """Return a value as code, in at most 60 characters, for an error message."""
    nested = isinstance(value, (Mapping, list, tuple, set))
    text = reprlib.repr(value) if nested else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _convert(kind: type, value: object) -> SettingValue | None:
    """Return a value in a setting's type; None for what is none."""
    try:
        if kind is str:
            return _as_text(value)
        if kind is bool:
            return _as_bool(value)
    except ValueError:  # Python refuses to write out whole numbers of thousands of digits
        return None
    found = number(value)
    if found is None or kind is float:
        return found
    return int(found) if found == int(found) else None


def _as_text(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Path)):
        return None
    text = str(value).strip()
    return text if is_plain_text(text) else None


def _as_bool(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, (str, int, float)):
        return BOOLEAN_WORDS.get(str(value).strip().lower())
    return None
