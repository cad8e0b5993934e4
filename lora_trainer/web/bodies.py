"""Request bodies: each is described once, as a `JsonBody` of values, which reads a request and says
in the OpenAPI document what it takes.

FastAPI checks none of it, so that refusals are sentences and its versions make no difference. The
ranges of training settings are those of settings/config.py.
"""

import abc
from collections.abc import Sequence
from typing import Any

from ..base.errors import ErrorCode, Refused
from ..base.json_types import JsonObject, JsonValue
from ..base.text import is_plain_text
from ..settings.config import all_settings, setting_of
from ..settings.setting import LONGEST_TEXT, Setting
from .responses import Schema


class Value(abc.ABC):
    """A value of a body: its JSON schema, and how it is read."""

    def __init__(self, schema: Schema, *, required: bool = False) -> None:
        self.schema = schema
        self.required = required

    def describe(self) -> Schema:
        """Return its JSON schema for the OpenAPI document."""
        return self.schema

    @abc.abstractmethod
    def read(self, body: JsonObject, name: str) -> object:
        """Return the value of this name in a body, or its default. Raises `Refused`."""


class JsonBody:
    """A JSON object with these values; whatever else a request has in it is ignored."""

    def __init__(self, *, optional: bool = False, **values: Value) -> None:
        """`optional`: a request without any body is as good as `{}`."""
        self._optional = optional
        self.values = values

    def read(self, body: JsonObject) -> dict[str, Any]:
        """Return all values by name. Raises `Refused` for the first that is not as described."""
        return {name: value.read(body, name) for name, value in self.values.items()}

    def describe(self) -> dict[str, Any]:
        """Return what a route's decorator needs for the OpenAPI document."""
        schema: Schema = {
            "type": "object",
            "properties": {name: value.describe() for name, value in self.values.items()},
        }
        required = [name for name, value in self.values.items() if value.required]
        if required:
            schema["required"] = required
        content = {"application/json": {"schema": schema}}
        return {
            "openapi_extra": {"requestBody": {"content": content, "required": not self._optional}}
        }


# --- Plain values ---------------------------------------------------------------------------------


class Text(Value):
    """Reads None where it is left out."""

    def __init__(self, schema: Schema | None = None, *, required: bool = False) -> None:
        limits = {"type": "string", "maxLength": LONGEST_TEXT}
        super().__init__(limits if schema is None else schema, required=required)

    def read(self, body: JsonObject, name: str) -> str | None:
        value = body.get(name)
        if value is None and not self.required:
            return None
        if not isinstance(value, str) or len(value) > LONGEST_TEXT or not is_plain_text(value):
            raise Refused(
                f"`{name}` must be text of at most {LONGEST_TEXT:,} characters.",
                field=name,
                code=ErrorCode.BAD_REQUEST,
            )
        return value


class Number(Value):
    def __init__(self, low: float, high: float, *, default: float) -> None:
        limits = {"type": "number", "minimum": low, "maximum": high}
        super().__init__({**limits, "default": default})
        self._default = default
        self._low = low
        self._high = high

    def read(self, body: JsonObject, name: str) -> float:
        return _number(body.get(name, self._default), name, self._low, self._high)


class WholeNumber(Value):
    """Reads `default` where it is left out, which may be None for a default that depends."""

    def __init__(
        self,
        low: int,
        high: int,
        *,
        default: int | None = None,
        required: bool = False,
        cuts_fraction: bool = False,
        **schema: JsonValue,
    ) -> None:
        """`cuts_fraction`: 20.5 is read as 20, not refused."""
        limits: Schema = {"type": "integer", "minimum": low, "maximum": high}
        if default is not None:
            limits["default"] = default
        super().__init__({**limits, **schema}, required=required)
        self._low = low
        self._high = high
        self._default = default
        self._cuts_fraction = cuts_fraction

    def read(self, body: JsonObject, name: str) -> int | None:
        if name not in body and not self.required:
            return self._default
        value = _number(body.get(name), name, self._low, self._high)
        if value != int(value) and not self._cuts_fraction:
            raise Refused(f"`{name}` must be a whole number.", field=name, code=ErrorCode.BAD_VALUE)
        return int(value)


class Switch(Value):
    def __init__(self, *, default: bool = False, **schema: JsonValue) -> None:
        super().__init__({"type": "boolean", "default": default, **schema})
        self._default = default

    def read(self, body: JsonObject, name: str) -> bool:
        value = body.get(name, self._default)
        if not isinstance(value, bool):
            raise Refused(
                f"`{name}` must be true or false.", field=name, code=ErrorCode.BAD_REQUEST
            )
        return value


class OneOf(Value):
    """One of these words; the first is the default."""

    def __init__(self, choices: Sequence[str], **schema: JsonValue) -> None:
        super().__init__({"enum": list(choices), "default": choices[0], **schema})
        self._choices = choices

    def read(self, body: JsonObject, name: str) -> str:
        value = body.get(name, self._choices[0])
        if value not in self._choices:
            choices = ", ".join(self._choices)
            raise Refused(
                f"`{name}` must be one of {choices}.", field=name, code=ErrorCode.BAD_VALUE
            )
        return value


# --- Lists and objects ----------------------------------------------------------------------------


class Texts(Value):
    """A list of texts, such as file names; reads None where it is left out."""

    def __init__(self, *, required: bool = False, **schema: JsonValue) -> None:
        super().__init__({"type": "array", "items": Text().schema, **schema}, required=required)

    def read(self, body: JsonObject, name: str) -> list[str] | None:
        value = body.get(name)
        if value is None and not self.required:
            return None
        if not isinstance(value, list) or not all(
            isinstance(each, str) and is_plain_text(each) for each in value
        ):
            raise Refused(
                f"`{name}` must be a list of texts.", field=name, code=ErrorCode.BAD_REQUEST
            )
        return value


class TextsByName(Value):
    """An object of texts, such as captions by file name; reads None where it is left out."""

    def __init__(self, *, required: bool = False, **schema: JsonValue) -> None:
        properties = {"type": "object", "additionalProperties": {"type": "string"}}
        super().__init__({**properties, **schema}, required=required)

    def read(self, body: JsonObject, name: str) -> dict[str, str] | None:
        value = body.get(name)
        if value is None and not self.required:
            return None
        if (
            not isinstance(value, dict)
            or not all(isinstance(each, str) for each in value.values())
            or not all(is_plain_text(each) for each in value)
        ):
            message = f"`{name}` must map file names to texts."
            raise Refused(message, field=name, code=ErrorCode.BAD_REQUEST)
        return value


class JsonObjectValue(Value):
    """An object that somebody else reads; `{}` where it is left out."""

    def __init__(self, schema: Schema, *, of: str = "settings", required: bool = False) -> None:
        super().__init__(schema, required=required)
        self._of = of

    def read(self, body: JsonObject, name: str) -> JsonObject:
        value = body.get(name)
        if value is None and not self.required:
            return {}
        if not isinstance(value, dict):
            message = f"`{name}` must map {self._of} to values."
            raise Refused(message, field=name, code=ErrorCode.BAD_REQUEST)
        return value


class UncheckedValue(Value):
    """A value that somebody else reads and checks; described here only."""

    def read(self, body: JsonObject, name: str) -> JsonValue:
        return body.get(name)


def _number(value: object, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        message = f"`{name}` must be a number from {low:g} to {high:g}."
        raise Refused(message, field=name, code=ErrorCode.BAD_VALUE)
    return value


# --- Training settings ----------------------------------------------------------------------------

_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


class ConfigValue(JsonObjectValue):
    """A training config; kohya's names are taken, too."""

    def __init__(self, *, required: bool = False) -> None:
        super().__init__({"type": "object"}, required=required)

    def describe(self) -> Schema:
        return _config_schema()  # of the settings that there are when the document is made


def _config_schema() -> Schema:
    ours = {setting.name: setting_schema(setting) for setting in all_settings()}
    theirs = {
        other: {**ours[setting.name], "description": f"Another name of {setting.name}."}
        for setting in all_settings()
        for other in (*setting.kohya, *setting.also)
    }
    return {"type": "object", "properties": {**ours, **theirs}, "additionalProperties": False}


def setting_value(name: str) -> Value:
    """Return one training setting as a value of a body, with its own range and choices."""
    setting = setting_of(name)
    if setting.type is bool:
        return Switch(default=setting.default)
    if setting.choices:
        others = [choice for choice in setting.choices if choice != setting.default]
        return OneOf([setting.default, *others])
    if setting.type is int:
        return WholeNumber(setting.minimum, setting.maximum, default=setting.default)
    return Text()


def setting_schema(setting: Setting) -> Schema:
    """Return the schema of one setting's value: its type, range and choices."""
    described: Schema = {
        "type": _JSON_TYPES[setting.type],
        "title": setting.title,
        "description": setting.help,
        "default": setting.default,
    }
    if setting.minimum is not None:
        described |= {"minimum": setting.minimum, "maximum": setting.maximum}
    if setting.choices:
        described["enum"] = list(setting.choices)
    return described
