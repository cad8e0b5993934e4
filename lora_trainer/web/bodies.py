"""Reads values out of JSON bodies and query strings; what is not as expected is refused with its
name.
"""

from collections.abc import Sequence

from ..base.errors import Refused
from ..base.text import is_plain_text
from ..settings.config import setting_of
from ..settings.setting import LONGEST_TEXT


def text(body: dict, key: str, *, required: bool = True) -> str | None:
    value = body.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not is_plain_text(value):
        raise Refused(f"`{key}` must be text.", field=key, code="bad_request")
    return value


def number(body: dict, key: str, default: float, low: float, high: float) -> float:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refused(
            f"`{key}` must be a number from {low:g} to {high:g}.", field=key, code="bad_value"
        )
    return value


def whole(body: dict, key: str, default: int, low: int, high: int) -> int:
    value = number(body, key, default, low, high)
    if value != int(value):
        raise Refused(f"`{key}` must be a whole number.", field=key, code="bad_value")
    return int(value)


def whole_setting(body: dict, name: str) -> int:
    """Read a whole number that is a training setting, within that setting's own range."""
    setting = setting_of(name)
    return whole(body, name, setting.default, setting.minimum, setting.maximum)


def switch(body: dict, key: str, default: bool = False) -> bool:
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise Refused(f"`{key}` must be true or false.", field=key, code="bad_request")
    return value


def one_of(body: dict, key: str, choices: Sequence[str]) -> str:
    """Read one of these words; the first is the default."""
    value = body.get(key, choices[0])
    if value not in choices:
        raise Refused(f"`{key}` must be one of {', '.join(choices)}.", field=key, code="bad_value")
    return value


def one_of_setting(body: dict, name: str) -> str:
    """Read a training setting's choice; its default where none is given."""
    setting = setting_of(name)
    return one_of({name: setting.default, **body}, name, setting.choices or ())


def texts(body: dict, key: str, *, required: bool = True) -> list[str] | None:
    """Read a list of texts, such as file names."""
    value = body.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, list) or not all(
        isinstance(each, str) and is_plain_text(each) for each in value
    ):
        raise Refused(f"`{key}` must be a list of texts.", field=key, code="bad_request")
    return value


def mapping(body: dict, key: str, *, required: bool = True) -> dict[str, str] | None:
    """Read an object of texts by name, such as captions by file name."""
    value = body.get(key)
    if value is None and not required:
        return None
    if (
        not isinstance(value, dict)
        or not all(isinstance(each, str) for each in value.values())
        or not all(is_plain_text(each) for each in value)
    ):
        raise Refused(f"`{key}` must map file names to texts.", field=key, code="bad_request")
    return value


def mapping_of_settings(body: dict, key: str, *, required: bool = True) -> dict:
    """Read an object of settings by name."""
    values = body.get(key)
    if values is None and not required:
        return {}
    if not isinstance(values, dict):
        raise Refused(f"`{key}` must map settings to values.", field=key, code="bad_request")
    return values
