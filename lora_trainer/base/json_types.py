"""Types of JSON, as it is read from files and requests: what a value may be is not known before it
was looked at.
"""

from typing import TypeAlias, Union

JsonValue: TypeAlias = Union[None, bool, int, float, str, "list[JsonValue]", "dict[str, JsonValue]"]
JsonObject: TypeAlias = dict[str, JsonValue]
