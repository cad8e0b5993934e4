"""Edits of many captions at once: pure functions from captions to captions. A tag is what stands
between two commas.

`plan_edit` is the entry; `ACTIONS` are the edits that it knows, each a function that makes an
`Edit` of one caption from the user's settings.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeAlias

import regex

from ..base.errors import ErrorCode, Refused
from ..base.text import counted
from ..dataset.captions import split_tags
from .safe_regex import compile_literal, compile_pattern, substitute

PATTERN_SECONDS = 5.0  # for all captions; a pattern that takes longer backtracks without end
LONGEST_CAPTION = 100_000
LONGEST_TEXT = 5000
Edit = Callable[[str], str]
EditSettings: TypeAlias = Mapping[str, object]
"""Values of an action's parameters as a request has them."""


def plan_edit(
    action: str,
    captions: Mapping[str, str],
    settings: EditSettings,
    *,
    everything: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the captions that an action changes, by file name; raises `Refused` for an unknown
    action or unusable settings.

    `everything` are the captions of the whole data set (default: `captions`), from which an action
    learns how common a tag is.
    """
    if action not in ACTIONS:
        raise Refused(
            f"The action {action!r} is not known; expected one of {', '.join(ACTIONS)}.",
            field="action",
            code=ErrorCode.BAD_VALUE,
        )
    chosen = ACTIONS[action]
    values: dict[str, object] = {
        name: parameter.read(name, settings) for name, parameter in chosen.parameters.items()
    }
    if chosen.needs_captions:
        values["captions"] = list((everything or captions).values())
    edit = chosen.make(**values)
    edited = {name: _edit_lines(edit, caption) for name, caption in captions.items()}
    return {name: after for name, after in edited.items() if after != captions[name]}


def label_of(action: str, settings: EditSettings, count: int) -> str:
    """Return the name of a bulk edit in the undo history."""
    shortened = {name: str(value).strip()[:40] for name, value in settings.items()}
    label = ACTIONS[action].label.format_map(shortened)
    return f"{label} ({counted(count, 'caption')})"


# --- Actions --------------------------------------------------------------------------------------


def trigger_first(text: str) -> Edit:
    """The trigger word is the first tag; where it was another tag, it moves."""
    word = text.strip()

    def edit(caption: str) -> str:
        if regex.match(rf"{regex.escape(word)}(?!\w)", caption):
            return caption
        return _join([word, *(tag for tag in split_tags(caption) if not _same(tag, word))])

    return edit


def prepend(text: str) -> Edit:
    """Put text in front: as it is if it ends with a space or a comma, else as a tag of its own."""

    def edit(caption: str) -> str:
        if text[-1] in " ," and caption:
            return f"{text}{caption}"
        return _join([text.strip(" ,"), caption])

    return edit


def append(text: str) -> Edit:
    """Put text at the end: as it is if it begins with a space or a comma, else as a tag."""

    def edit(caption: str) -> str:
        if text[0] in " ," and caption:
            return f"{caption}{text}"
        return _join([caption, text.strip(" ,")])

    return edit


def replace_text(find: str, to: str, *, is_regex: bool, match_case: bool) -> Edit:
    """Replace text, or what a regular expression finds, everywhere in a caption.

    In a regular expression's replacement `\\1` is the first group. Commas left empty are dropped.
    """
    if is_regex:
        pattern = compile_pattern(find, match_case=match_case)
        replacement = to
    else:
        pattern = compile_literal(find, match_case=match_case)
        replacement = to.replace("\\", r"\\")
    deadline = time.monotonic() + PATTERN_SECONDS

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
        if not any(_same(each, tag) for each in tags):
            return tags
        return _unique([to.strip() if _same(each, tag) else each for each in tags])

    return _edit_tags(edit)


def deduplicate() -> Edit:
    return _edit_tags(_unique)


def sort() -> Edit:
    return _edit_tags(lambda tags: sorted(tags, key=str.casefold))


def order(keep: str, captions: list[str]) -> Edit:
    """Put the tags of `keep` first, then the data set's most common tags, which thus stay in place
    when training shuffles the rest.
    """
    counts = Counter(tag.casefold() for caption in captions for tag in set(split_tags(caption)))
    first = {tag.casefold(): number for number, tag in enumerate(split_tags(keep))}

    def place(tag: str) -> tuple[int, int]:
        key = tag.casefold()
        return first.get(key, len(first)), -counts[key]

    return _edit_tags(lambda tags: sorted(tags, key=place))


@dataclasses.dataclass(frozen=True)
class TextParameter:
    """Text that the user gives to an action; where it is required, `ignored` characters alone do
    not count.
    """

    required: bool = False
    ignored: str = ""

    def read(self, name: str, settings: EditSettings) -> str:
        value = settings.get(name)
        value = "" if value is None else value
        if not isinstance(value, str) or len(value) > LONGEST_TEXT or "\x00" in value:
            raise Refused(
                f"`{name}` must be text of at most {LONGEST_TEXT} characters.",
                field=name,
                code=ErrorCode.BAD_VALUE,
            )
        if self.required and not value.strip(self.ignored):
            raise Refused(f"`{name}` is empty.", field=name, code=ErrorCode.BAD_VALUE)
        return value


@dataclasses.dataclass(frozen=True)
class SwitchParameter:
    """A switch that the user gives to an action; off where it is left out."""

    def read(self, name: str, settings: EditSettings) -> bool:
        value = settings.get(name)
        if value not in (None, True, False):
            raise Refused(f"`{name}` must be true or false.", field=name, code=ErrorCode.BAD_VALUE)
        return bool(value)


@dataclasses.dataclass(frozen=True)
class Action:
    """A kind of bulk edit: what makes the edit, its label in the undo history with the values of
    parameters in it, and its parameters by name.
    """

    make: Callable[..., Edit]
    label: str
    parameters: Mapping[str, TextParameter | SwitchParameter] = dataclasses.field(
        default_factory=dict
    )
    needs_captions: bool = False


_TAGS = TextParameter(required=True, ignored=" ,")
_PATTERN = TextParameter(required=True)
_ANY_TEXT = TextParameter()
_SWITCH = SwitchParameter()
ACTIONS = {
    "trigger_first": Action(trigger_first, "Put {text} first", {"text": _TAGS}),
    "prepend": Action(prepend, "Put {text} in front", {"text": _TAGS}),
    "append": Action(append, "Add {text} at the end", {"text": _TAGS}),
    "replace": Action(
        lambda find, replace, regex, match_case: replace_text(
            find, replace, is_regex=regex, match_case=match_case
        ),
        "Replace {find}",
        {"find": _PATTERN, "replace": _ANY_TEXT, "regex": _SWITCH, "match_case": _SWITCH},
    ),
    "remove_tag": Action(remove_tag, "Remove {tag}", {"tag": _TAGS}),
    "rename_tag": Action(rename_tag, "Rename {tag} to {to}", {"tag": _TAGS, "to": _TAGS}),
    "deduplicate": Action(deduplicate, "Remove duplicate tags"),
    "sort": Action(sort, "Sort tags"),
    "order": Action(order, "Order tags", {"keep": _ANY_TEXT}, needs_captions=True),
}


# --- Inside ---------------------------------------------------------------------------------------


def _edit_lines(edit: Edit, caption: str) -> str:
    """Edit each line of a caption; a line that stays the same keeps its blanks."""
    edited = []
    for before in caption.split("\n"):
        after = edit(before)
        line = before if after == before else " ".join(after.split())
        if line:
            edited.append(line)
    return "\n".join(edited)


def _edit_tags(edit: Callable[[list[str]], list[str]]) -> Edit:
    """Edit a caption as a list of tags; a caption whose tags stay the same is not changed."""

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
