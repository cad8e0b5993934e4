"""Captions that vary from step to step: one of several lines, {this|that}, shuffled tags, tags or
all of it left out, or the trigger word alone. In the order of sd-scripts.
"""

import dataclasses
import re
from collections.abc import Callable

import torch

from .captions import contains_word, split_tags

MOST_NESTED = 10
_CHOICE = re.compile(r"\{([^{}]+)\}")
_BRACES = "\ufdd0\ufdd1"  # noncharacters of Unicode, which no text has


@dataclasses.dataclass(frozen=True)
class CaptionAugmentation:
    """How captions vary; dropouts and `trigger_only` are shares of the times they are drawn.

    Tags that are kept stay in front and are never left out. They are the first `keep_tokens`, or,
    where a caption has `keep_tokens_separator`, all before it; what follows a second separator is
    kept at the end. The trigger word is kept, too: in front it stays there and counts among the
    `keep_tokens`; elsewhere it is shuffled, but never left out.

    With `alternatives` one of a caption's lines is drawn each time, with `wildcards` one of
    {this|that}.
    """

    shuffle: bool = False
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0
    trigger_only: float = 0.0
    trigger_word: str = ""
    alternatives: bool = False
    wildcards: bool = False

    @property
    def varies(self) -> bool:
        return (
            self.shuffle
            or self.alternatives
            or self.wildcards
            or max(self.caption_dropout, self.tag_dropout, self.trigger_only) > 0
        )

    def plain(self, caption: str) -> str:
        """Return a caption as it is when nothing varies, without the separator.

        Of several lines and of each {this|that} the first is taken.
        """
        return self._joined(self._chosen(caption, lambda count: 0))

    def _joined(self, caption: str) -> str:
        if not self.keep_tokens_separator or self.keep_tokens_separator not in caption:
            return caption
        return ", ".join(
            part
            for piece in caption.split(self.keep_tokens_separator)
            for part in split_tags(piece)
        )

    def draw(self, caption: str, rng: torch.Generator, *, regularisation: bool = False) -> str:
        """Draw a caption as it is this time; for regularisation, without the trigger word."""
        trigger_word = "" if regularisation else self.trigger_word
        trigger_only = 0.0 if regularisation else self.trigger_only
        if self.caption_dropout or trigger_only:
            # One number decides about both, so that each share is of all times.
            drawn = torch.rand((), generator=rng).item()
            if drawn < self.caption_dropout:
                return ""
            if drawn < self.caption_dropout + trigger_only:
                return trigger_word
        caption = self._chosen(caption, lambda count: int(torch.randint(count, (), generator=rng)))
        if not (self.shuffle or self.tag_dropout):
            return self._joined(caption)
        kept, rest, last = self._split(caption, trigger_word)
        if self.shuffle:
            rest = [rest[at] for at in torch.randperm(len(rest), generator=rng).tolist()]
        if self.tag_dropout:
            rest = self._with_tag_dropout(rest, trigger_word, rng)
        return ", ".join([*kept, *rest, *last])

    def _with_tag_dropout(
        self, tags: list[str], trigger_word: str, rng: torch.Generator
    ) -> list[str]:
        found = []
        for tag, drawn in zip(tags, torch.rand(len(tags), generator=rng).tolist(), strict=True):
            has_trigger = trigger_word and contains_word(tag, trigger_word)
            if has_trigger or drawn >= self.tag_dropout:
                found.append(tag)
        return found

    def _chosen(self, caption: str, choose: Callable[[int], int]) -> str:
        if self.alternatives and "\n" in caption:
            lines = caption.split("\n")
            caption = lines[choose(len(lines))]
        return filled(caption, choose) if self.wildcards else caption

    def _split(self, caption: str, trigger_word: str) -> tuple[list[str], list[str], list[str]]:
        """Split a caption into what stays in front, what varies, and what stays at the end."""
        if self.keep_tokens_separator and self.keep_tokens_separator in caption:
            front, between, *last = caption.split(self.keep_tokens_separator, 2)
            return split_tags(front), split_tags(between), split_tags(self._joined("".join(last)))
        tags, trigger = split_tags(caption), split_tags(trigger_word)
        front, word = ", ".join(tags[: len(trigger)]), ", ".join(trigger)
        count = self.keep_tokens
        if front.startswith(word) and contains_word(front, word):
            count = max(count, len(trigger))
        return tags[:count], tags[count:], []


def filled(caption: str, choose: Callable[[int], int]) -> str:
    """Fill in `{this|that}` from the inside outwards; `choose(count)` returns the index to take.

    As in sd-scripts, `{{` and `}}` are braces that stay, so `}}` closes no choice.
    """
    caption = caption.replace("{{", _BRACES[0]).replace("}}", _BRACES[1])
    for _ in range(MOST_NESTED):
        caption, count = _CHOICE.subn(lambda match: _one_of(match[1].split("|"), choose), caption)
        if not count:
            break
    return caption.replace(_BRACES[0], "{").replace(_BRACES[1], "}")


def _one_of(options: list[str], choose: Callable[[int], int]) -> str:
    return options[choose(len(options))]


def has_choices(caption: str) -> bool:
    """Tell whether a caption has {this|that} in it."""
    return any("|" in each for each in _CHOICE.findall(caption.replace("{{", "").replace("}}", "")))


def without_choices(caption: str) -> str:
    """Return the parts of a caption that are there whatever is drawn; `{{` is as in `filled`."""
    caption = caption.replace("{{", _BRACES[0]).replace("}}", _BRACES[1])
    for _ in range(MOST_NESTED):
        caption, count = _CHOICE.subn(" ", caption)
        if not count:
            break
    return caption.replace(_BRACES[0], "{").replace(_BRACES[1], "}")
