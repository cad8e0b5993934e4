"""The settings of one file while they are converted into ours: what was taken over, what was
skipped, and why; and the readers of values that all converters share.
"""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from ..base.errors import ErrorCode, Refused
from ..base.text import number
from ..settings.config import TrainConfig
from ..settings.files import MOST_KEYS, check_extent
from .kohya_names import SECRETS

LONGEST_ARGUMENTS = 10_000  # characters of --network_args or --optimizer_args


MOST_LITERAL = 1000  # characters; Python's parser runs out of memory over deep nonsense


NO_LITERAL = (
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    RecursionError,
    MemoryError,
)  # what it and `ast.literal_eval` raise


@dataclasses.dataclass(frozen=True)
class SkippedSetting:
    """Something that was not taken over as it stood: `key` and `value` as the source has them,
    `reason` a phrase for the user.
    """

    key: str
    value: Any
    reason: str


class Conversion:
    """A source's values while they are used up: each ends in `settings` (our names) or in
    `left_out`, or meant nothing.

    `origin` is each setting's key in the source, `assumed` the names of those that the source did
    not say.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises `Refused` (code "no_settings") for more values than any trainer has settings."""
        refuse_too_many(values, "settings", MOST_KEYS)
        self.values = {
            str(key): cleaned
            for key, value in values.items()
            if (cleaned := parse_text(value)) is not None
        }
        self.settings: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.assumed: set[str] = set()
        self.left_out: list[SkippedSetting] = []

    def take(self, key: str, default: Any = None) -> Any:
        """Return a value, which is then used up."""
        return self.values.pop(key, default)

    def set(self, name: str, value: Any, key: str = "") -> None:
        self.settings[name], self.origin[name] = value, key or name

    def skip(self, key: str, value: Any, reason: str) -> None:
        """List something, unless it was off anyway."""
        if not is_unset(value):
            self.left_out.append(
                SkippedSetting(key, "(not shown)" if key in SECRETS else value, reason)
            )

    def skip_key(self, key: str, reason: str) -> None:
        self.skip(key, self.take(key), reason)


def refuse_too_many(found: Sized, what: str, most: int) -> None:
    """Raise `Refused` (code "no_settings") for more than anybody has: reading on would take
    long.
    """
    if len(found) > most:
        raise Refused(
            f"It holds {len(found):,} {what}, and at most {most} are read: this is no file of"
            " settings.",
            code=ErrorCode.NO_SETTINGS,
        )


def parse_text(value: Any) -> Any:
    """Turn what means nothing ("", "None") into None, and words for yes and no into booleans; other
    text is stripped.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    return {"": None, "none": None, "null": None, "true": True, "false": False}.get(
        text.lower(), text
    )


def is_unset(value: Any) -> bool:
    """Say whether a value means that something is not used."""
    return (
        value is None
        or value is False
        or value in ("", "0", "0.0", [], {}, ())
        or (isinstance(value, (int, float)) and value == 0)
    )


def parse_arguments(value: Any) -> dict[str, Any]:
    """Read "name=value" pairs from a list, a text with blanks between them, or a mapping; what has
    no = is kept as a name with True.
    """
    if isinstance(value, (Mapping, list, tuple)):
        refuse_too_many(value, "arguments", MOST_KEYS)
    if isinstance(value, Mapping):
        return {str(key): parse_text(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            found = (
                json.loads(value)
                if value.startswith(("[", "{"))
                else shlex.split(value[:LONGEST_ARGUMENTS])
            )
            check_extent(found)
            value = found
        except (ValueError, RecursionError):
            value = value[:LONGEST_ARGUMENTS].split()
        if isinstance(value, Mapping):
            return parse_arguments(value)
    pairs = (str(item).partition("=") for item in (value if isinstance(value, Iterable) else []))
    return {
        name.strip(): parse_text(found.strip("\"' ")) if sign else True
        for name, sign, found in pairs
        if name.strip()
    }


def parse_numbers(value: Any) -> list[float] | None:
    """Read "1,2,3" or a list; None when there is something else in it."""
    if value is None or isinstance(value, bool):
        return None
    found = [
        number(item)
        for item in (
            value.split(",")
            if isinstance(value, str)
            else value
            if isinstance(value, (list, tuple))
            else [value]
        )
    ]
    return None if None in found else found


def valid_settings(conversion: Conversion) -> dict[str, Any]:
    """Return the settings that `TrainConfig` takes; the others are listed with its sentence."""
    valid = {}
    for name, value in conversion.settings.items():
        try:
            valid[name] = getattr(TrainConfig.parse({name: value}), name)
        except Refused as error:
            conversion.left_out.append(
                SkippedSetting(conversion.origin[name], value, error.message)
            )
    return valid
