"""Captions that are other each time: one of several lines, {this|that}, shuffled, with tags or all
of it left out, or the trigger word alone. In the order in which kohya does it.
"""

import dataclasses
import re
from collections.abc import Callable

import torch

from .captions import contains_word, split_tags

MOST_NESTED = 10
_CHOICE = re.compile(r"\{([^{}]+)\}")
_BRACES = "\ufdd0\ufdd1"  # of Unicode's noncharacters, which no text has


@dataclasses.dataclass(frozen=True)
class CaptionAugmentation:
    """How captions vary; the fields are the settings of the same purpose. Shares are of the times
    that a picture is shown.

    Parts, between commas, that are kept stay in front and are never left out: the first
    `keep_tokens`, or instead all before `keep_tokens_separator` where a caption has it; all after a
    second one is kept, too, and stays at the end. The trigger word counts as kept: in front it
    stays in front (among the `keep_tokens`, not besides them), elsewhere its part is shuffled but
    never left out.

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
        """Return a caption as it is when nothing varies: its first line, the first of each choice,
        without the separator.
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

    def draw(self, caption: str, draws: torch.Generator, *, regularisation: bool = False) -> str:
        """Return a caption as it is this time. Those of regularisation pictures know no trigger
        word.
        """
        trigger_word, trigger_only = (
            ("", 0.0) if regularisation else (self.trigger_word, self.trigger_only)
        )
        if self.caption_dropout or trigger_only:
            drawn = torch.rand(
                (), generator=draws
            ).item()  # one draw for both, so that each share is of all times
            if drawn < self.caption_dropout:
                return ""
            if drawn < self.caption_dropout + trigger_only:
                return trigger_word
        caption = self._chosen(
            caption, lambda count: int(torch.randint(count, (), generator=draws))
        )
        if not (self.shuffle or self.tag_dropout):
            return self._joined(caption)
        kept, rest, last = self._split(caption, trigger_word)
        if self.shuffle:
            rest = [rest[at] for at in torch.randperm(len(rest), generator=draws).tolist()]
        if self.tag_dropout:
            drawn = torch.rand(len(rest), generator=draws).tolist()
            rest = [
                part
                for part, each in zip(rest, drawn, strict=True)
                if each >= self.tag_dropout or (trigger_word and contains_word(part, trigger_word))
            ]
        return ", ".join([*kept, *rest, *last])

    def _chosen(self, caption: str, choose: Callable[[int], int]) -> str:
        if self.alternatives and "\n" in caption:
            lines = caption.split("\n")
            caption = lines[choose(len(lines))]
        return filled(caption, choose) if self.wildcards else caption

    def _split(self, caption: str, trigger_word: str) -> tuple[list[str], list[str], list[str]]:
        """Part a caption into what stays in front, what varies, and what stays at the end."""
        if self.keep_tokens_separator and self.keep_tokens_separator in caption:
            front, between, *last = caption.split(self.keep_tokens_separator, 2)
            return split_tags(front), split_tags(between), split_tags(self._joined("".join(last)))
        parts, trigger = split_tags(caption), split_tags(trigger_word)
        front, word = ", ".join(parts[: len(trigger)]), ", ".join(trigger)
        count = max(
            self.keep_tokens,
            len(trigger) if front.startswith(word) and contains_word(front, word) else 0,
        )
        return parts[:count], parts[count:], []


def filled(caption: str, choose: Callable[[int], int]) -> str:
    """Fill in `{this|that}`, from the inside outwards; `choose(count)` names the one to take.

    `{{` and `}}` are braces that stay, so `}}` closes no choice: as sd-scripts reads them.
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
    """Return what is in a caption whatever is drawn."""
    for _ in range(MOST_NESTED):
        caption, count = _CHOICE.subn(" ", caption)
        if not count:
            break
    return caption
