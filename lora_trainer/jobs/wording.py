"""Text that can always be stored: a file's name need not be Unicode, and what is no character in it
is written as an escape.
"""

import json
from typing import Any


def storable(text: str) -> str:
    """Return text that SQLite and UTF-8 take, e.g. `caf\\udce9.png` for a name that is not
    UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(value: Any, *, indent: int | None = None) -> bytes:
    """Return a value as JSON that reads back as it was, names that are not UTF-8 included; the rest
    of it stays readable.
    """
    return json.dumps(value, ensure_ascii=False, indent=indent).encode(
        "utf-8", "backslashreplace"
    )  # JSON's own escapes, in JSON's own spelling
