"""Texts of unknown encoding: UTF-8 and UTF-16 where they can be recognised, else the likeliest of
the encodings that Windows writes. And numbers that are written as text.
"""

import functools
import json
import math
import re
from typing import Any

import charset_normalizer

from .errors import ErrorCode, Refused

# distinguished by charset-normalizer, which errs on short texts with more to choose from
LEGACY_ENCODINGS = ("gb18030", "cp932", "cp1252")
RARER_ENCODINGS = ("big5", "euc_kr")
ENCODINGS = ("utf-8", "utf-16", *LEGACY_ENCODINGS, *RARER_ENCODINGS)
LARGEST_CACHED_BYTES = 4096
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def guess_encoding(data: bytes) -> str:
    """Return the likeliest encoding by its Python name; "latin-1", which has a character for every
    byte, when no other fits.
    """
    if len(data) <= LARGEST_CACHED_BYTES:
        return _guess_cached(data)
    return _guess(data)


def _guess(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return encoding
    if _decodes(data, "utf-8"):
        return "utf-8"
    likeliest = charset_normalizer.from_bytes(data, cp_isolation=list(LEGACY_ENCODINGS)).best()
    if likeliest is not None and likeliest.encoding in LEGACY_ENCODINGS:
        return likeliest.encoding
    return next((encoding for encoding in LEGACY_ENCODINGS if _decodes(data, encoding)), "latin-1")


_guess_cached = functools.lru_cache(maxsize=4096)(_guess)


def decode(data: bytes, encoding: str | None = None) -> str:
    """Decode a text in the likeliest encoding, or in the one that the user names; raises `Refused`
    when it is not in that one.
    """
    if encoding is None:
        return data.decode(guess_encoding(data), errors="replace")  # for a cut-off UTF-16
    if encoding not in ENCODINGS and encoding not in ("utf-8-sig", "latin-1"):
        raise Refused(
            f"The encoding {encoding[:40]!r} is not known; choose one of {', '.join(ENCODINGS)}.",
            field="encoding",
            code=ErrorCode.BAD_VALUE,
        )
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Refused(
            f"The text is not in {encoding}: line {line} has bytes that mean nothing there. Choose"
            " another encoding.",
            field="encoding",
            code=ErrorCode.BAD_VALUE,
        ) from error


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def number(value: Any) -> float | None:
    """Return a value as a finite float; None for a bool and for anything that is no number."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def storable(text: str) -> str:
    """Return text that SQLite and UTF-8 take, e.g. `caf\\udce9.png` for a name that is not
    UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """Return a value as JSON that reads back as it was, names that are not UTF-8 included; the rest
    of it stays readable.
    """
    return json.dumps(value, ensure_ascii=False, indent=indent).encode(
        "utf-8", "backslashreplace"
    )  # JSON's own escapes, in JSON's own spelling


_WINDOWS_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE
)


def is_windows_device(filename: str) -> bool:
    """Tell whether Windows opens a device instead of a file of this name, whatever its ending."""
    return _WINDOWS_DEVICE.fullmatch(filename) is not None


def counted(count: int, noun: str) -> str:
    """Return "1 picture", "2 pictures"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def is_plain_text(text: str) -> bool:
    """Say whether text can be stored anywhere: no NUL, no half of a surrogate pair."""
    return "\x00" not in text and not re.search("[\ud800-\udfff]", text)
