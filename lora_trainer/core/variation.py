"""Captions that are other each time: shuffled, with tags or all of it left out, or the trigger word alone. In the order in which kohya does it."""
import dataclasses

import torch

from .captions import contains_word, split_tags


@dataclasses.dataclass(frozen=True)
class Variation:
    """How captions vary; the fields are the settings of the same purpose. Shares are of the times that a picture is shown.

    Parts, between commas, that are kept stay in front and are never left out: the first `keep_tokens`, or instead all before
    `keep_tokens_separator` where a caption has it; all after a second one is kept, too, and stays at the end. The trigger word counts as kept: in front
    it stays in front (among the `keep_tokens`, not besides them), elsewhere its part is shuffled but never left out.
    """
    shuffle: bool = False
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0
    trigger_only: float = 0.0
    trigger_word: str = ""

    @property
    def varies(self) -> bool:
        return self.shuffle or max(self.caption_dropout, self.tag_dropout, self.trigger_only) > 0

    def plain(self, caption: str) -> str:
        """Return a caption as it is when nothing varies: without the separator."""
        if not self.keep_tokens_separator or self.keep_tokens_separator not in caption:
            return caption
        return ", ".join(part for piece in caption.split(self.keep_tokens_separator) for part in split_tags(piece))

    def draw(self, caption: str, draws: torch.Generator, *, regularisation: bool = False) -> str:
        """Return a caption as it is this time. Those of regularisation pictures know no trigger word."""
        trigger_word, trigger_only = ("", 0.0) if regularisation else (self.trigger_word, self.trigger_only)
        if self.caption_dropout or trigger_only:
            drawn = torch.rand((), generator=draws).item()                         # one draw for both, so that each share is of all times
            if drawn < self.caption_dropout:
                return ""
            if drawn < self.caption_dropout + trigger_only:
                return trigger_word
        if not (self.shuffle or self.tag_dropout):
            return self.plain(caption)
        kept, rest, last = self._split(caption, trigger_word)
        if self.shuffle:
            rest = [rest[at] for at in torch.randperm(len(rest), generator=draws).tolist()]
        if self.tag_dropout:
            drawn = torch.rand(len(rest), generator=draws).tolist()
            rest = [part for part, each in zip(rest, drawn) if each >= self.tag_dropout or (trigger_word and contains_word(part, trigger_word))]
        return ", ".join([*kept, *rest, *last])

    def _split(self, caption: str, trigger_word: str) -> tuple[list[str], list[str], list[str]]:
        """Part a caption into what stays in front, what varies, and what stays at the end."""
        if self.keep_tokens_separator and self.keep_tokens_separator in caption:
            front, between, *last = caption.split(self.keep_tokens_separator, 2)
            return split_tags(front), split_tags(between), split_tags(self.plain("".join(last)))
        parts, trigger = split_tags(caption), split_tags(trigger_word)
        front, word = ", ".join(parts[:len(trigger)]), ", ".join(trigger)
        count = max(self.keep_tokens, len(trigger) if front.startswith(word) and contains_word(front, word) else 0)
        return parts[:count], parts[count:], []
