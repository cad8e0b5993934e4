"""The arguments of an optimizer as the user writes them, such as "betas=0.9, 0.99 decouple=True",
split into names and values. training/optimizer_arguments.py checks them.
"""

import re

_NAME = re.compile(r"(?:^|(?<=[\s,;]))([A-Za-z_]\w*)\s*=")


def split_arguments(text: str) -> list[tuple[str, str]]:
    """Return names and values, still as text, in their order; a value may hold commas and blanks.

    Raises ValueError for a text that is not of the form name=value name=value.
    """
    found = list(_NAME.finditer(text))
    if text[: found[0].start() if found else None].strip():
        raise ValueError(f"{text.strip()[:60]!r} is not of the form name=value name=value")
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        (match[1], text[match.end() : end].strip(" \t\r\n,;"))
        for match, end in zip(found, ends, strict=False)
    ]
