"""Prompts as the WebUI reads them: weighted parts, and chunks of 75 tokens. Pure functions; the
tokenizer is a parameter.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..base.errors import ErrorCode, Refused

CHUNK_TOKENS = 75
# the WebUI's "comma padding backtrack": a chunk ends at a comma that is at most so many tokens back
COMMA_BACKTRACK = 20
ROUND_WEIGHT = 1.1
SQUARE_WEIGHT = 1 / 1.1


class Part(NamedTuple):
    """Text of a prompt, and its weight."""

    text: str
    weight: float


class LoraTag(NamedTuple):
    """A LoRA that a prompt calls, and its weight."""

    name: str
    weight: float


# Ends a chunk. In brackets the word is an ordinary word of negative weight, as in the WebUI.
BREAK = Part("BREAK", -1.0)
_PIECE = re.compile(
    r"""\\(?P<literal>[()\[\]\\])
    | \\
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?[.\d]+)\s*\)
    | (?P<close>[)\]])
    | :
    | [^\\()\[\]:]+""",
    re.X,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclasses.dataclass
class Chunk:
    """At most 75 tokens, without start and end, and a weight for each."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    weights: list[float] = dataclasses.field(default_factory=list)

    def split_off(self, start: int) -> "Chunk":
        """Take the tokens from `start` on out, and return them as another chunk."""
        rest = Chunk(self.tokens[start:], self.weights[start:])
        del self.tokens[start:], self.weights[start:]
        return rest


def split_loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """Take `<lora:name>` and `<lora:name:weight>` out of a prompt; raises `Refused` for a weight
    that is no number.
    """
    tags: list[LoraTag] = []

    def take_out(tag: re.Match[str]) -> str:
        name, _, weight = tag[1].partition(":")
        try:
            number = float(weight or 1.0)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise Refused(
                f"{tag[0]}: {weight!r} is no number. Write the LoRA's name and a weight, as in"
                " <lora:name:0.8>.",
                field="prompt",
                code=ErrorCode.BAD_VALUE,
            )
        tags.append(LoraTag(name, number))
        return ""

    return " ".join(re.sub(r"<lora:([^<>]*)>", take_out, prompt).split()), tags


def parse_weights(prompt: str) -> list[Part]:
    r"""Split a prompt into parts of equal weight, with `BREAK` between chunks.

    (word) weighs 1.1, (word:1.2) 1.2, [word] 1/1.1; in nested brackets weights are multiplied.
    \( is a literal bracket. A bracket that is not closed lasts to the end.
    """
    parser = _WeightParser()
    for piece in _PIECE.finditer(prompt):
        parser.add(piece)
    parser.close_all()
    return _joined(parser.parts)


class _WeightParser:
    """Collects the parts of a prompt; `_opened` are the parts at which open brackets began."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, piece: re.Match[str]) -> None:
        if piece["literal"]:
            self.parts.append(Part(piece["literal"], 1.0))
        elif piece["open"]:
            self._opened[piece["open"]].append(len(self.parts))
        elif not self._close(piece):
            self._add_text("" if piece[0] == "\\" else piece[0])

    def close_all(self) -> None:
        for bracket, weight in (("(", ROUND_WEIGHT), ("[", SQUARE_WEIGHT)):
            for start in self._opened[bracket]:
                self._multiply(start, weight)

    def _close(self, piece: re.Match[str]) -> bool:
        """Close a bracket; False where the piece is none, or none is open."""
        if piece["weight"] is not None and _is_number(piece["weight"]):
            bracket, weight = "(", float(piece["weight"])
        elif piece["close"] == ")":
            bracket, weight = "(", ROUND_WEIGHT
        elif piece["close"] == "]":
            bracket, weight = "[", SQUARE_WEIGHT
        else:
            return False
        if not self._opened[bracket]:
            return False
        self._multiply(self._opened[bracket].pop(), weight)
        return True

    def _multiply(self, start: int, weight: float) -> None:
        self.parts[start:] = [Part(part.text, part.weight * weight) for part in self.parts[start:]]

    def _add_text(self, text: str) -> None:
        for number, part in enumerate(_BREAK.split(text)):
            if number:
                self.parts.append(BREAK)
            self.parts.append(Part(part, 1.0))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _joined(pieces: Iterable[Part]) -> list[Part]:
    """Join neighbours of the same weight."""
    parts: list[Part] = []
    for piece in pieces:
        if parts and parts[-1].weight == piece.weight:
            parts[-1] = Part(parts[-1].text + piece.text, piece.weight)
        else:
            parts.append(piece)
    return parts or [Part("", 1.0)]


def split_chunks(
    parts: Iterable[Part], tokenize: Callable[[str], list[int]], comma: int, *, most_tokens: int
) -> list[Chunk]:
    """Fill chunks of 75 tokens, at least one; a full chunk ends at its last comma if that is at
    most `COMMA_BACKTRACK` tokens back.

    Only the first `most_tokens` of the prompt are read, and no more chunks are made than they fill.
    `comma` is the number of the comma's token.
    """
    chunks = [Chunk()]
    last_comma = -1  # its place in the last chunk
    left = most_tokens
    for part in parts:
        if part == BREAK:
            chunks.append(Chunk())
            last_comma = -1
            continue
        for token in tokenize(part.text)[:left]:
            left -= 1
            if token == comma:
                last_comma = len(chunks[-1].tokens)
            if len(chunks[-1].tokens) == CHUNK_TOKENS:
                is_near = last_comma >= 0 and CHUNK_TOKENS - last_comma <= COMMA_BACKTRACK
                ends_at_comma = token != comma and is_near
                end = last_comma + 1 if ends_at_comma else CHUNK_TOKENS
                chunks.append(chunks[-1].split_off(end))
                last_comma = -1
            chunks[-1].tokens.append(token)
            chunks[-1].weights.append(part.weight)
    if len(chunks) > 1 and not chunks[-1].tokens:
        chunks.pop()
    return chunks[: math.ceil(most_tokens / CHUNK_TOKENS)]
