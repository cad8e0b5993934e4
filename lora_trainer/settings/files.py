"""Read settings files: YAML, TOML and JSON, within limits that keep a hostile file from taking
memory or minutes. Knows nothing of the settings themselves; TrainConfig.parse checks them.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import ErrorCode, Refused
from .setting import WrittenSettings

MOST_LEVELS = 20  # of sections in sections
MOST_VALUES = 100_000  # all together
MOST_BITS = 1024  # of a whole number
MOST_BYTES = {".json": 1_000_000, ".toml": 100_000, ".yaml": 150_000}  # each read within a second
MOST_NODES = 10_000  # of YAML, which is parsed in Python
MOST_NUMBER = 1000  # digits of a number
MOST_DOTS = 12  # parts of a dotted TOML key
MOST_KEYS = 600  # settings side by side
_LONG_NUMBER = re.compile(rf"(?<![\d_:])[\d_:]{{{MOST_NUMBER}}}")
_DOTTED_KEY = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MOST_DOTS}}}"""
)
_TYPE_PHRASES = {str: "text", list: "a list", type(None): "nothing"}


def read_settings(path: Path) -> WrittenSettings:
    """Read settings by name from YAML, TOML (flat or in sections, as kohya writes it) or JSON.
    Raises `Refused` (code "unreadable_config").
    """
    values = read_mapping(path)
    return flattened(values) if Path(path).suffix.lower() == ".toml" else values


def read_mapping(path: Path) -> WrittenSettings:
    """Read a mapping from YAML, TOML or JSON just as it is written, sections and all. Raises
    `Refused` (code "unreadable_config").
    """
    values = _read_values(Path(path))
    if not isinstance(values, Mapping):
        found = _TYPE_PHRASES.get(type(values), "a single value")
        raise _unreadable(path, f"holds {found}, not a list of `name: value` lines.")
    return dict(values)


def flattened(values: WrittenSettings) -> WrittenSettings:
    """Put what stands in sections beside the rest, whatever the sections are called, as sd-scripts
    reads its TOML.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(value if isinstance(value, Mapping) else {key: value})
    return flat


def check_extent(values: object, *, most_values: float = math.inf) -> None:
    """Raise ValueError for values that are nested too deep to be written out, are too many, or hold
    a number of hundreds of digits.
    """
    level: list[object] = [values]
    count = 0
    for _ in range(MOST_LEVELS):
        level = [item for container in level for item in _items_of(container)]
        count += len(level)
        if any(isinstance(item, int) and item.bit_length() > MOST_BITS for item in level):
            raise ValueError(f"it holds a whole number of more than {MOST_BITS} bits")
        if count > most_values:
            raise ValueError(f"it holds more than {most_values} values")
        if not level:
            return
    raise ValueError(f"its values are nested more than {MOST_LEVELS - 1} levels deep")


def _items_of(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


def _unreadable(path: Path, why: str) -> Refused:
    return Refused(f"The settings file {path} {why}", code=ErrorCode.UNREADABLE_CONFIG)


def _read_values(path: Path) -> object:
    try:
        values = _read_parsed(path)
        check_extent(values, most_values=MOST_VALUES)
    except UnicodeDecodeError as error:
        raise _unreadable(path, "cannot be read: it is no text in UTF-8.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _unreadable(path, f"cannot be read: {error}") from error
    return values


def _read_parsed(path: Path) -> object:
    """Parse a file by its ending; every other one is read as YAML."""
    suffix = path.suffix.lower()
    parsers: dict[str, Callable[[str], object]] = {".toml": _parse_toml, ".json": json.loads}
    parse = parsers.get(suffix, _parse_yaml)
    return parse(_read_text(path, MOST_BYTES[suffix if suffix in parsers else ".yaml"]))


def _read_text(path: Path, most_bytes: int) -> str:
    """Return a file's text; raises ValueError for one that is too large, or holds a number so long
    that reading it takes seconds.
    """
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes // 1000} kB, so it is no settings file")
    text = data.decode("utf-8-sig")
    if _LONG_NUMBER.search(text):
        raise ValueError(f"it holds a number of more than {MOST_NUMBER} digits")
    return text


def _parse_toml(text: str) -> WrittenSettings:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib
        except ModuleNotFoundError as error:
            raise ValueError(
                "TOML needs Python 3.11 or the package tomli; save the settings as YAML"
            ) from error
    if _DOTTED_KEY.search(text):
        raise ValueError(f"it has a key of more than {MOST_DOTS} parts")
    return tomllib.loads(text)


def _parse_yaml(text: str) -> object:
    loader = _LimitedLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _LimitedLoader(yaml.SafeLoader):
    """YAML within limits and without aliases: seven lines of them can mean ten million values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses an alias (*name); write the value itself")
        self._nodes += 1
        self._depth += 1
        if self._nodes > MOST_NODES:
            raise yaml.YAMLError(f"it holds more than {MOST_NODES} names and values")
        if self._depth > MOST_LEVELS:
            raise yaml.YAMLError(f"its values are nested more than {MOST_LEVELS - 1} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node
