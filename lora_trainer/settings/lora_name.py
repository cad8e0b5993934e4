"""Check the name of a LoRA, which becomes a file name and is written in prompts."""

import re

from ..base.errors import Refused

MAX_NAME_BYTES = 180


def check_name(name: str) -> str:
    """Return a LoRA's name if every system can store it and a prompt can call it, else raise
    `Refused`.
    """
    reason = None
    if not name.strip():
        reason = "is empty"
    elif name != name.strip() or name.endswith("."):
        reason = "begins or ends with a space or a full stop"
    elif ".." in name or (found := re.search(r'[\\/:*?"<>|,=\x00-\x1f]', name)):
        reason = f"contains {('..' if '..' in name else found.group())!r}"
    elif len(name.encode("utf-8")) > MAX_NAME_BYTES:
        reason = (
            f"is {len(name)} characters long ({len(name.encode('utf-8'))} bytes; at most"
            f" {MAX_NAME_BYTES})"
        )
    elif re.fullmatch(
        r"(?i)(con|prn|aux|nul|com\d|lpt\d|none|addams)(\..*)?", name
    ) or name.startswith("."):
        reason = "is reserved by Windows or the WebUI, or begins with a full stop"
    if reason:
        raise Refused(
            f"The name {name[:60]!r} {reason}. Use letters, digits, spaces, - and _; it becomes a"
            " file name and is written in prompts.",
            field="output_name",
            code="bad_name",
        )
    return name
