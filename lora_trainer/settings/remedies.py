"""Remedies: settings to change that set a warning or a refusal right, by one press on the page or
one option on the command line.

Warnings of a plan are sentences, plain strings; one that knows a remedy is a `ActionableWarning`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from .config import setting_of
from .setting import Value


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Settings to change, and what the button that changes them says."""

    label: str
    changes: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"label": self.label, "changes": dict(self.changes)}


class ActionableWarning(str):
    """A warning, one sentence, with its remedies, the best one first."""

    remedies: tuple[Remedy, ...]

    def __new__(cls, sentence: str, *remedies: Remedy) -> "ActionableWarning":
        remark = super().__new__(cls, sentence)
        remark.remedies = remedies
        return remark


def set_to(name: str, value: Value) -> Remedy:
    """Return the remedy of giving one setting another value."""
    title = setting_of(name).title
    words = f"{value:g}" if isinstance(value, float) else value
    return Remedy(f"Set {title[0].lower() + title[1:]} to {words}", {name: value})


def advice_in(remarks: Iterable[str]) -> list[dict[str, Any]]:
    """Return `{message, label, changes}` for each remedy that warnings have, as JSON."""
    return [
        {"message": str(remark), **remedy.described()}
        for remark in remarks
        if isinstance(remark, ActionableWarning)
        for remedy in remark.remedies
    ]


def details_of(*remedies: Remedy) -> dict[str, Any]:
    """Return a refusal's `details`, for one that remedies would end."""
    return {"remedies": [remedy.described() for remedy in remedies]}
