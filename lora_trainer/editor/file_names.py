"""Names that a file of a data set may have on every file system."""

import re
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..base.text import is_plain_text, is_windows_device

LONGEST_NAME_BYTES = 200
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')


def safe_filename(filename: str) -> str:
    """Return a file name without its folders; raises `Refused` for one that some file system would
    not take.
    """
    name = re.split(r"[\\/]", str(filename))[-1].strip()
    if not _is_safe(name):
        raise Refused(
            f"{str(filename)[:80]!r} cannot be used as a file name. Rename it.",
            field="to",
            code=ErrorCode.BAD_NAME,
        )
    return name


def _is_safe(name: str) -> bool:
    stem = Path(name).stem
    if not stem or name.startswith(".") or stem.endswith((".", " ")):
        return False
    if _FORBIDDEN.search(name) or is_windows_device(name):
        return False
    return is_plain_text(name) and len(name.encode("utf-8", "replace")) <= LONGEST_NAME_BYTES
