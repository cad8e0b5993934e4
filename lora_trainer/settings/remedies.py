"""Remedies: settings to change that set a warning or a refusal right, by one press on the page or
one option on the command line.

Warnings of a plan are sentences, plain strings; one that knows a remedy is a `ActionableWarning`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypedDict

from .config import setting_of
from .setting import SettingValue, SettingValues


class RemedyView(TypedDict):
    """A remedy as JSON."""

    label: str
    changes: SettingValues


class Advice(RemedyView):
    """A remedy as JSON, with the warning that it ends."""

    message: str


class RefusalDetails(TypedDict):
    """`Refused.details` of what remedies would end."""

    remedies: list[RemedyView]


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Settings to change, and what the button that changes them says."""

    label: str
    changes: Mapping[str, SettingValue]

    def described(self) -> RemedyView:
        """Return it as JSON."""
        return {"label": self.label, "changes": dict(self.changes)}


class ActionableWarning(str):
    """A warning, one sentence, with its remedies, the best one first."""

    remedies: tuple[Remedy, ...]

    def __new__(cls, sentence: str, *remedies: Remedy) -> "ActionableWarning":
        remark = super().__new__(cls, sentence)
        remark.remedies = remedies
        return remark


def set_to(name: str, value: SettingValue) -> Remedy:
    """Return the remedy of giving one setting another value."""
    title = setting_of(name).title
    words = f"{value:g}" if isinstance(value, float) else value
    return Remedy(f"Set {title[0].lower() + title[1:]} to {words}", {name: value})


def advice_in(remarks: Iterable[str]) -> list[Advice]:
    """Return each remedy that warnings have, as JSON."""
    return [
        {"message": str(remark), **remedy.described()}
        for remark in remarks
        if isinstance(remark, ActionableWarning)
        for remedy in remark.remedies
    ]


def details_of(*remedies: Remedy) -> RefusalDetails:
    """Return a refusal's `details`, for one that remedies would end."""
    return {"remedies": [remedy.described() for remedy in remedies]}
