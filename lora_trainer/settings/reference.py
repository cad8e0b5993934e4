"""docs/settings.md: every setting in a table, made from where they are declared."""

from .config import GROUPS, all_settings
from .setting import Setting, SettingValue

_HEAD = (
    "| setting | title | other names | default | range | what it does |",
    "|---|---|---|---|---|---|",
)


def reference_table() -> str:
    """Return every setting as Markdown, a table for each group: our name, title, kohya's and other
    names, default, range, what it does.
    """
    lines = []
    for group, heading in GROUPS.items():
        lines += [f"### {heading}", "", *_HEAD]
        lines += [_row(setting) for setting in all_settings() if setting.group == group]
        lines.append("")
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    limits = setting.range_phrase()
    if setting.choices:
        limits = _as_code(setting.choices)
    cells = [
        f"`{setting.name}`",
        setting.title,
        _as_code((*setting.kohya, *setting.also, *setting.kohya_forms)),
        _default_text(setting.default),
        limits,
        setting.help,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _as_code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _default_text(default: SettingValue) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)
