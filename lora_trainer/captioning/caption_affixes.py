"""From a captioner's words to the caption that is written: the options that all captioners share,
as pure functions.
"""

import dataclasses
import re
from collections.abc import Sequence

from ..dataset.captions import contains_word
from ..settings.setting import Setting
from .options import OptionValues

OPTIONS = (
    Setting("", "Trigger word", "Put first in every caption that lacks it.", name="trigger_word"),
    Setting(
        "",
        "Prefix",
        "Put in front of what the captioner says: joined as it is if it ends with a space, else by"
        " the separator.",
        name="prefix",
    ),
    Setting(
        "",
        "Suffix",
        "Put behind what the captioner says: joined as it is if it begins with a space, else by the"
        " separator.",
        name="suffix",
    ),
    Setting(
        "",
        "Excluded words",
        "Tags, or words of a sentence, that are left out; commas between them.",
        name="exclude",
    ),
    Setting(
        False,
        "Underscores to spaces",
        "long_hair becomes long hair; faces such as ^_^ stay.",
        name="underscores_to_spaces",
    ),
    Setting(", ", "Separator", "What is put between tags.", name="separator"),
)
_TWO_LETTERS = re.compile(r"[^\W\d_]{2}")


@dataclasses.dataclass(frozen=True)
class CaptionAffixes:
    """How words become a caption. `exclude` is a comma list."""

    trigger_word: str = ""
    prefix: str = ""
    suffix: str = ""
    exclude: str = ""
    underscores_to_spaces: bool = False
    separator: str = ", "

    @classmethod
    def of(cls, options: OptionValues) -> "CaptionAffixes":
        """Take the common options out of a captioner's."""
        return cls(
            **{option.name: options[option.name] for option in OPTIONS if option.name in options}
        )


def options_for(underscores_to_spaces: bool) -> list[Setting]:
    """Return the common options with a captioner's own default."""
    return [
        (
            dataclasses.replace(option, default=underscores_to_spaces)
            if option.name == "underscores_to_spaces"
            else option
        )
        for option in OPTIONS
    ]


def build_caption(parts: Sequence[str], affixes: CaptionAffixes, *, sentences: bool = False) -> str:
    """Join a picture's tags, or its sentence, to one line.

    Tags are compared without regard to case and to underscores; of equal ones the first stays. In a
    sentence, excluded words are cut out wherever they stand as whole words.
    """
    excluded = [word.strip() for word in affixes.exclude.split(",") if word.strip()]
    words = [_spaced(part) if affixes.underscores_to_spaces else part for part in parts]
    words = (
        [_without(word, excluded) for word in words]
        if sentences
        else _without_tags(words, excluded)
    )
    caption = affixes.separator.join(
        word for word in (" ".join(word.split()) for word in words) if word
    )
    caption = _joined(
        affixes.prefix, caption, affixes.separator, as_it_is=affixes.prefix[-1:].isspace()
    )
    caption = _joined(
        caption, affixes.suffix, affixes.separator, as_it_is=affixes.suffix[:1].isspace()
    )
    return _with_trigger(" ".join(caption.split()), affixes)


def _spaced(tag: str) -> str:
    """Turn underscores to spaces, but in faces drawn with signs and single letters (0_0, >_<, x_x)
    keep them.
    """
    return tag.replace("_", " ") if _TWO_LETTERS.search(tag) else tag


def _key(tag: str) -> str:
    return " ".join(tag.replace("_", " ").casefold().split())


def _without_tags(tags: Sequence[str], excluded: Sequence[str]) -> list[str]:
    seen, kept = {_key(word) for word in excluded}, []
    for tag in tags:
        if _key(tag) not in seen:
            seen.add(_key(tag))
            kept.append(tag)
    return kept


def _without(sentence: str, excluded: Sequence[str]) -> str:
    for word in excluded:
        sentence = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "", sentence, flags=re.IGNORECASE)
    return re.sub(r"\s+([,.;])", r"\1", sentence).strip(" ,;")


def _joined(first: str, second: str, separator: str, *, as_it_is: bool) -> str:
    if not first.strip() or not second.strip():
        return first + second
    return first + ("" if as_it_is else separator) + second


def _with_trigger(caption: str, affixes: CaptionAffixes) -> str:
    trigger = affixes.trigger_word.strip()
    if not trigger or contains_word(caption, trigger):
        return caption
    return f"{trigger}{affixes.separator}{caption}" if caption else trigger
