"""Edits of many captions at once: pure functions from captions to captions. Tags are what stands
between commas.

`plan_edit` is the one entry; each action below it turns one caption into another.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import regex

from ..base.errors import Refused
from ..dataset.captions import split_tags
from .safe_regex import compile_literal, compile_pattern, substitute

PATTERN_SECONDS = 5.0  # for all captions; a pattern that takes longer backtracks without end
LONGEST_CAPTION = 100_000
LONGEST_TEXT = 5000


def plan_edit(
    action: str,
    captions: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    everything: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the captions that an action changes, by file name; raises `Refused` for an unknown
    action or unusable settings.

    `everything`: the captions of the whole data set, where the action goes by how common a tag is
    (default: `captions`).
    """
    if action not in ACTIONS:
        raise Refused(
            f"The action {action!r} is not known; expected one of {', '.join(ACTIONS)}.",
            field="action",
            code="bad_value",
        )
    make, names = ACTIONS[action]
    values = {
        name: _setting(settings, name, kind, required) for name, (kind, required) in names.items()
    }
    if action == "order":
        values["captions"] = list((everything or captions).values())
    edit = make(**values)
    edited = ((name, caption, _line_by_line(edit, caption)) for name, caption in captions.items())
    return {name: after for name, before, after in edited if after != before}


Edit = Callable[[str], str]


def trigger_first(text: str) -> Edit:
    """The trigger word is the first tag; where it was another tag, it moves."""
    word = text.strip()

    def edit(caption: str) -> str:
        if regex.match(rf"{regex.escape(word)}(?!\w)", caption):
            return caption
        return _join([word, *(tag for tag in split_tags(caption) if not _same(tag, word))])

    return edit


def prepend(text: str) -> Edit:
    """Text that ends with a space or a comma is put in front as it is, other text as a tag of its
    own.
    """
    return lambda caption: (
        f"{text}{caption}" if text[-1] in " ," and caption else _join([text.strip(" ,"), caption])
    )


def append(text: str) -> Edit:
    return lambda caption: (
        f"{caption}{text}" if text[0] in " ," and caption else _join([caption, text.strip(" ,")])
    )


def replace(find: str, replace: str, regex: bool, match_case: bool) -> Edit:
    """Replace text, or what a regular expression finds, everywhere in a caption; `\\1` is the first
    group. Commas left empty go.
    """
    pattern = (
        compile_pattern(find, match_case=match_case)
        if regex
        else compile_literal(find, match_case=match_case)
    )
    replacement, deadline = (
        (replace if regex else replace.replace("\\", r"\\")),
        time.monotonic() + PATTERN_SECONDS,
    )

    def edit(caption: str) -> str:
        found = substitute(
            pattern,
            replacement,
            caption,
            seconds=max(0.001, deadline - time.monotonic()),
            longest=LONGEST_CAPTION,
        )
        return caption if found == caption else _without_empty_tags(found)

    return edit


def remove_tag(tag: str) -> Edit:
    return _edit_tags(lambda tags: [each for each in tags if not _same(each, tag)])


def rename_tag(tag: str, to: str) -> Edit:
    """Rename a tag; where the new name is there already, one of the two goes."""

    def edit(tags: list[str]) -> list[str]:
        return (
            _unique([to.strip() if _same(each, tag) else each for each in tags])
            if any(_same(each, tag) for each in tags)
            else tags
        )

    return _edit_tags(edit)


def deduplicate() -> Edit:
    return _edit_tags(_unique)


def sort() -> Edit:
    return _edit_tags(lambda tags: sorted(tags, key=str.casefold))


def order(keep: str, captions: list[str]) -> Edit:
    """What is kept comes first, then the data set's commonest tags: so the first ones stay in place
    when training shuffles the rest.
    """
    counts = Counter(tag.casefold() for caption in captions for tag in set(split_tags(caption)))
    first = {tag.casefold(): number for number, tag in enumerate(split_tags(keep))}
    return _edit_tags(
        lambda tags: sorted(
            tags, key=lambda tag: (first.get(tag.casefold(), len(first)), -counts[tag.casefold()])
        )
    )


_TEXT, _OPTIONAL, _ANY, _SWITCH = (str, True), (str, False), ("any", False), (bool, False)
ACTIONS: dict[str, tuple[Callable[..., Edit], dict[str, tuple[Any, bool]]]] = {
    "trigger_first": (trigger_first, {"text": _TEXT}),
    "prepend": (prepend, {"text": _TEXT}),
    "append": (append, {"text": _TEXT}),
    "replace": (replace, {"find": _TEXT, "replace": _ANY, "regex": _SWITCH, "match_case": _SWITCH}),
    "remove_tag": (remove_tag, {"tag": _TEXT}),
    "rename_tag": (rename_tag, {"tag": _TEXT, "to": _TEXT}),
    "deduplicate": (deduplicate, {}),
    "sort": (sort, {}),
    "order": (order, {"keep": _OPTIONAL}),
}


def _line_by_line(edit: Edit, caption: str) -> str:
    """Edit each line of a caption by itself; a line that stays the same is left as it is."""
    edited = ((line, edit(line)) for line in caption.split("\n"))
    lines = (before if after == before else " ".join(after.split()) for before, after in edited)
    return "\n".join(line for line in lines if line)


# --- Inside ---------------------------------------------------------------------------------------


def _setting(settings: Mapping[str, Any], name: str, kind: Any, required: bool) -> Any:
    value = settings.get(name)
    if kind is bool:
        if value not in (None, True, False):
            raise Refused(f"`{name}` must be true or false.", field=name, code="bad_value")
        return bool(value)
    value = "" if value is None else value
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or "\x00" in value:
        raise Refused(
            f"`{name}` must be text of at most {LONGEST_TEXT} characters.",
            field=name,
            code="bad_value",
        )
    if required and not value.strip(" ," if name in ("text", "tag", "to") else ""):
        raise Refused(f"`{name}` is empty.", field=name, code="bad_value")
    return value


def _edit_tags(edit: Callable[[list[str]], list[str]]) -> Edit:
    """Edit a caption as a list of tags; one whose tags stay the same keeps its commas and spaces as
    they are.
    """

    def edit_caption(caption: str) -> str:
        tags = split_tags(caption)
        edited = edit(tags)
        return caption if edited == tags else _join(edited)

    return edit_caption


def _unique(tags: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    return list(first.values())


def _same(tag: str, other: str) -> bool:
    return tag.strip().casefold() == other.strip().casefold()


def _join(tags: list[str]) -> str:
    return ", ".join(tag for tag in tags if tag)


def _without_empty_tags(caption: str) -> str:
    """Drop the commas that a replacement by nothing leaves behind."""
    return _join(split_tags(caption)) if regex.search(r",\s*,|^\s*,|,\s*$", caption) else caption
