"""The settings of one file while they are converted into ours: what was taken over, what was
skipped, and why; and the readers of values that all converters share.
"""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sized
from typing import Any, TypeAlias

from ..base.errors import ErrorCode, Refused
from ..base.text import number
from ..settings.config import TrainConfig
from ..settings.files import MOST_KEYS, check_extent
from ..settings.setting import SettingValues, WrittenSettings
from .kohya_names import SECRETS

LONGEST_ARGUMENTS = 10_000  # characters of --network_args or --optimizer_args


MOST_LITERAL = 1000  # characters; Python's parser runs out of memory over deep nonsense


Arguments: TypeAlias = dict[str, Any]
"""Values of --network_args or --optimizer_args by name, of any type."""
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
    value: object
    reason: str


class Conversion:
    """A source's values while they are used up: each ends in `settings` (our names) or in
    `left_out`, or meant nothing.

    `origin` is each setting's key in the source, `assumed` the names of those that the source did
    not say.
    """

    def __init__(self, values: WrittenSettings) -> None:
        """Raises `Refused` (code "no_settings") for more values than any trainer has settings."""
        refuse_too_many(values, "settings", MOST_KEYS)
        self.values = {
            str(key): cleaned
            for key, value in values.items()
            if (cleaned := parse_text(value)) is not None
        }
        self.settings: dict[str, object] = {}
        self.origin: dict[str, str] = {}
        self.assumed: set[str] = set()
        self.left_out: list[SkippedSetting] = []

    def take(self, key: str, default: object = None) -> Any:
        """Return a value, which is then used up."""
        return self.values.pop(key, default)

    def set(self, name: str, value: object, key: str = "") -> None:
        self.settings[name], self.origin[name] = value, key or name

    def skip(self, key: str, value: object, reason: str) -> None:
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


def parse_text(value: object) -> Any:
    """Turn what means nothing ("", "None") into None, and words for yes and no into booleans; other
    text is stripped.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    return {"": None, "none": None, "null": None, "true": True, "false": False}.get(
        text.lower(), text
    )


def is_unset(value: object) -> bool:
    """Say whether a value means that something is not used."""
    return (
        value is None
        or value is False
        or value in ("", "0", "0.0", [], {}, ())
        or (isinstance(value, (int, float)) and value == 0)
    )


def parse_arguments(value: object) -> Arguments:
    """Read "name=value" pairs from a list, a text with blanks between them, or a mapping; what has
    no = is kept as a name with True.
    """
    if isinstance(value, (Mapping, list, tuple)):
        refuse_too_many(value, "arguments", MOST_KEYS)
    if isinstance(value, Mapping):
        return {str(key): parse_text(item) for key, item in value.items()}
    if isinstance(value, str):
        value = _split_arguments(value)
        if isinstance(value, Mapping):
            return parse_arguments(value)
    pairs = (str(item).partition("=") for item in (value if isinstance(value, Iterable) else []))
    return {
        name.strip(): parse_text(found.strip("\"' ")) if sign else True
        for name, sign, found in pairs
        if name.strip()
    }


def _split_arguments(text: str) -> object:
    """Read JSON, or words as a shell reads them."""
    try:
        is_json = text.startswith(("[", "{"))
        found = json.loads(text) if is_json else shlex.split(text[:LONGEST_ARGUMENTS])
        check_extent(found)
        return found
    except (ValueError, RecursionError):
        return text[:LONGEST_ARGUMENTS].split()


def parse_numbers(value: object) -> list[float] | None:
    """Read "1,2,3" or a list; None when there is something else in it."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.split(",")
    items = value if isinstance(value, (list, tuple)) else [value]
    found = [number(item) for item in items]
    numbers = [each for each in found if each is not None]
    return numbers if len(numbers) == len(found) else None


def valid_settings(conversion: Conversion) -> SettingValues:
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
