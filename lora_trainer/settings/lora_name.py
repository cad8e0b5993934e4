"""Check the name of a LoRA, which becomes a file name and is written in prompts."""

import re

from ..base.errors import ErrorCode, Refused
from ..base.text import is_windows_device

MAX_NAME_BYTES = 180
_FORBIDDEN = re.compile(r'[\\/:*?"<>|,=\x00-\x1f]')
_RESERVED_BY_WEBUI = re.compile(r"(?i)(none|addams)(\..*)?")


def check_name(name: str) -> str:
    """Return a LoRA's name if every system can store it and a prompt can call it, else raise
    `Refused`.
    """
    if reason := why_not_a_name(name):
        raise Refused(
            f"{reason} Use letters, digits, spaces, - and _; it becomes a"
            " file name and is written in prompts.",
            field="output_name",
            code=ErrorCode.BAD_NAME,
        )
    return name


def why_not_a_name(name: str) -> str:
    """Return what is wrong with a name, as a sentence; "" for a good one."""
    problem = _problem(name)
    return f"The name {name[:60]!r} {problem}." if problem else ""


def _problem(name: str) -> str:
    """Return what is wrong with a name, as the end of a sentence; "" for a good one."""
    if not name.strip():
        return "is empty"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space or a full stop"
    if ".." in name:
        return "contains '..'"
    if found := _FORBIDDEN.search(name):
        return f"contains {found.group()!r}"
    if (size := len(name.encode("utf-8"))) > MAX_NAME_BYTES:
        return f"is {len(name)} characters long ({size} bytes; at most {MAX_NAME_BYTES})"
    if is_windows_device(name) or _RESERVED_BY_WEBUI.fullmatch(name) or name.startswith("."):
        return "is reserved by Windows or the WebUI, or begins with a full stop"
    return ""
