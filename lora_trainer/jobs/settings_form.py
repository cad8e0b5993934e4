"""What a page needs to show the settings: their groups, what is known of each setting, and which
optimizers can be used here.

Everything about a setting is where it is declared, in settings/config.py.
"""

from typing import TypedDict

from ..settings.config import GROUPS, all_settings
from ..settings.setting import ChoiceDescription, Requirement, Setting, SettingDescription
from ..training.optimizers import optimizer_choices


class GroupView(TypedDict):
    name: str
    title: str


class FormEntry(SettingDescription):
    """A setting as its field on the page needs it."""

    effective_when: list[dict[str, Requirement]]


class SettingsForm(TypedDict):
    groups: list[GroupView]  # in their order on the page
    settings: list[FormEntry]


def form() -> SettingsForm:
    """Return all that the page needs to show the settings."""
    return {
        "groups": [{"name": name, "title": title} for name, title in GROUPS.items()],
        "settings": [_entry(setting) for setting in all_settings()],
    }


def _entry(setting: Setting) -> FormEntry:
    described = setting.describe()
    if setting.name == "optimizer":
        described["choices"] = [_optimizer_choice(name) for name in setting.choices or ()]
    conditions = [dict(condition) for condition in setting.effective_when]
    return {**described, "effective_when": conditions}


def _optimizer_choice(name: str) -> ChoiceDescription:
    known = {choice["name"]: choice for choice in optimizer_choices()}
    if name not in known:
        return {"value": name, "title": name, "needs": ""}
    choice = known[name]
    needs = "" if choice["available"] else choice["needs"]
    return {"value": name, "title": choice["title"], "needs": needs}
