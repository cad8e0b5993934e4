"""What a captioner is: it says what it needs, is loaded when it is chosen, turns pictures into
words, and gives everything back.

`Captioner` is cheap to make and to ask; `LoadedCaptioner` holds the model. `Option` describes a
setting to interfaces. The loop that feeds pictures to a loaded captioner is `run.py`; what becomes
of its words is `wording.py`.
"""

import abc
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..base.errors import Refused
from ..base.text import is_plain_text

Report = Callable[[str, float], None]  # a sentence for the user, and how far it is, in [0, 1]
Asked = Callable[[], bool]  # whether the user wants it to stop


@dataclasses.dataclass(frozen=True)
class Choice:
    value: str
    title: str
    help: str = ""


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting of a captioner: default, what it is called and does, its range or choices. The
    type is that of the default.
    """

    name: str
    title: str
    help: str
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[Choice, ...] = ()
    only_if: Mapping[str, str] | None = (
        None  # another option and the value at which this one counts
    )

    @property
    def type(self) -> str:
        return (
            "choice"
            if self.choices
            else {bool: "bool", int: "int", float: "float", str: "text"}[type(self.default)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Describe the option to interfaces; range, step and choices only where there are some."""
        limits = {
            key: getattr(self, key)
            for key in ("minimum", "maximum", "step")
            if getattr(self, key) is not None
        }
        choices = (
            {"choices": [dataclasses.asdict(choice) for choice in self.choices]}
            if self.choices
            else {}
        )
        condition = {"only_if": dict(self.only_if)} if self.only_if else {}
        return {
            "name": self.name,
            "title": self.title,
            "help": self.help,
            "type": self.type,
            "default": self.default,
            **limits,
            **choices,
            **condition,
        }

    def read(self, value: Any) -> Any:
        """Return a value of this option's type from a request or a command line; raises `Refused`
        naming the option.
        """
        if self.type == "text":
            return self._text(value)
        if self.type == "choice":
            return self._choice(value)
        return self._bool(value) if self.type == "bool" else self._number(value)

    def _text(self, value: Any) -> str:
        if not isinstance(value, str) or len(value) > 4000 or not is_plain_text(value):
            raise self._refused("is not text of at most 4000 characters")
        return value

    def _choice(self, value: Any) -> str:
        known = [choice.value for choice in self.choices]
        if value not in known:
            raise self._refused(
                f"is {str(value)[:80]!r}; it can be {', '.join(repr(each) for each in known)}"
            )
        return value

    def _bool(self, value: Any) -> bool:
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        found = (
            value
            if isinstance(value, bool)
            else words.get(value.strip().lower())
            if isinstance(value, str)
            else None
        )
        if found is None:
            raise self._refused(f"is {str(value)[:80]!r}; it can be true or false")
        return found

    def _number(self, value: Any) -> float:
        kind = type(self.default)
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            number = kind(value)
            if number != float(value):
                raise ValueError
        except (ValueError, OverflowError):
            raise self._refused(
                f"is {str(value)[:80]!r}, not a {'whole number' if kind is int else 'number'}"
            ) from None
        low, high = self.minimum, self.maximum
        if (low is not None and number < low) or (high is not None and number > high):
            raise self._refused(f"is {number:g}; it can be {low:g} to {high:g}")
        return number

    def _refused(self, found: str) -> Refused:
        return Refused(f"{self.title} ({self.name}) {found}.", field=self.name, code="bad_value")


def read_options(options: Sequence[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option's value, its default where none is given; raises `Refused` for a bad
    value or an unknown name.
    """
    known = {option.name: option for option in options}
    if unknown := [name for name in values if name not in known]:
        raise Refused(
            f"There is no option {unknown[0]!r}; there are {', '.join(known)}.",
            field=unknown[0],
            code="unknown_setting",
        )
    return {
        name: option.read(values[name]) if name in values else option.default
        for name, option in known.items()
    }


@dataclasses.dataclass(frozen=True)
class Readiness:
    """Whether a captioner can begin at once.

    If not, `needs` says in a sentence what is missing. Where that is only a download, `downloads`
    says what and from where, and starting anyway fetches it first; `download_bytes` is its size, or
    None where that is not known.
    """

    ready: bool
    needs: str = ""
    download_bytes: int | None = None
    downloads: str = ""

    @property
    def can_start(self) -> bool:
        return self.ready or bool(self.downloads)


READY = Readiness(True)


class LoadedCaptioner(abc.ABC):
    """A captioner with its model in memory, on the CPU until `to` says otherwise."""

    sentences = False  # whether the words are a sentence, not tags
    batch_size = 1

    def preparation(self) -> Generator[tuple[str, float], None, None]:
        """Do what has to be done once on the device, in steps of a second or so; yields a sentence
        and the share before each of them.

        Between two steps the model may be moved, and others may have the device. Run to its end
        before the first `caption`.
        """
        yield from ()

    @abc.abstractmethod
    def caption(self, images: list[Any], paths: list[Path]) -> list[list[str]]:
        """Turn PIL RGB images (upright, of any size) and the files they are from into words: for
        each its tags, or one sentence.
        """

    def to(self, device: torch.device) -> None:  # noqa: B027
        """Bring the model to a device; leave nothing of it on the one before."""

    def close(self) -> None:  # noqa: B027
        """Give the model back. Nothing else is called afterwards."""


class Captioner(abc.ABC):
    """One way to turn pictures into words. Making one and asking it anything but `load` imports and
    downloads nothing heavy.
    """

    name: str  # in requests and on the command line
    title: str
    help: str
    underscores_to_spaces = False  # the common option's default for this one

    def options(self) -> list[Option]:
        """Describe its own options; the common ones (`wording.OPTIONS`) are added by `describe`."""
        return []

    def readiness(self, options: Mapping[str, Any]) -> Readiness:
        """Say whether it can begin with these options (complete, as `read_options` returns them),
        without asking the network.

        Raises `Refused` for options that cannot be.
        """
        return READY

    @abc.abstractmethod
    def load(
        self, options: Mapping[str, Any], *, on_progress: Report, should_stop: Asked
    ) -> LoadedCaptioner:
        """Download what is missing and load the model on the CPU. Raises `Refused`, or `Stopped`
        when asked to stop meanwhile.
        """
