"""What a page needs to show the settings: their groups, what is known of each setting, and which
optimizers can be used here.

Everything about a setting is where it is declared, in settings/config.py.
"""

from typing import Any

from ..settings.config import GROUPS, all_settings
from ..settings.setting import Setting
from ..training.optimizers import optimizer_choices


def form() -> dict[str, Any]:
    """Return `groups` in their order, each `{name, title}`, and `settings`, each as
    `Setting.describe` has it, with `effective_when`, and with choices that say what they need.
    """
    return {
        "groups": [{"name": name, "title": title} for name, title in GROUPS.items()],
        "settings": [_entry(setting) for setting in all_settings()],
    }


def _entry(setting: Setting) -> dict[str, Any]:
    entry = setting.describe()
    if setting.name == "optimizer":
        entry["choices"] = [_optimizer_choice(name) for name in setting.choices or ()]
    entry["effective_when"] = [dict(condition) for condition in setting.effective_when]
    return entry


def _optimizer_choice(name: str) -> dict[str, str]:
    """Return an optimizer as `{value, title, needs}`; `needs` is the command that installs what is
    missing, else "".
    """
    known = {choice["name"]: choice for choice in optimizer_choices()}
    if name not in known:
        return {"value": name, "title": name, "needs": ""}
    choice = known[name]
    needs = "" if choice["available"] else choice["needs"]
    return {"value": name, "title": choice["title"], "needs": needs}
