"""A prompt as the WebUI reads it: weighted parts, and chunks of 75 tokens. Pure functions; what
turns words into tokens is handed in.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable

from ..base.errors import Refused

CHUNK_TOKENS = 75
# the WebUI's "comma padding backtrack": a chunk rather ends at a comma that is at most so many
# tokens back
COMMA_REACH = 20
ROUND, SQUARE = 1.1, 1 / 1.1
Part = tuple[str, float]
# Go on in the next chunk; in brackets the word is no break but a word of negative weight, as in
# the WebUI.
BREAK: Part = (
    "BREAK",
    -1.0,
)
Lora = tuple[str, float]
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


def split_loras(prompt: str) -> tuple[str, list[Lora]]:
    """Take `<lora:name>` and `<lora:name:weight>` out of a prompt; raises `Refused` for a weight
    that is no number.
    """
    tags: list[Lora] = []

    def take(tag: re.Match) -> str:
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
                code="bad_value",
            )
        tags.append((name, number))
        return ""

    return " ".join(re.sub(r"<lora:([^<>]*)>", take, prompt).split()), tags


def parse_weights(prompt: str) -> list[Part]:  # noqa: C901
    r"""Split a prompt into parts of equal weight, `BREAK` between chunks: (word) weighs 1.1,
    (word:1.2) 1.2, [word] 1/1.1, nested they multiply, \( is a bracket; what is not closed lasts to
    the end.
    """
    pieces: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(since: int, factor: float) -> None:
        for piece in pieces[since:]:
            piece[1] *= factor

    for found in _PIECE.finditer(prompt):
        if found["literal"]:
            pieces.append([found["literal"], 1.0])
        elif found["open"]:
            opened[found["open"]].append(len(pieces))
        elif found["weight"] is not None and opened["("] and _is_number(found["weight"]):
            weigh(opened["("].pop(), float(found["weight"]))
        elif found["close"] and opened["(" if found["close"] == ")" else "["]:
            weigh(
                opened["(" if found["close"] == ")" else "["].pop(),
                ROUND if found["close"] == ")" else SQUARE,
            )
        else:
            for number, text in enumerate(_BREAK.split("" if found[0] == "\\" else found[0])):
                pieces += ([list(BREAK)] if number else []) + [[text, 1.0]]
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for since in opened[bracket]:
            weigh(since, factor)
    return _joined(pieces)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _joined(pieces: Iterable[list]) -> list[Part]:
    """Join neighbours of the same weight."""
    parts: list[Part] = []
    for text, weight in pieces:
        if parts and parts[-1][1] == weight:
            parts[-1] = (parts[-1][0] + text, weight)
        else:
            parts.append((text, weight))
    return parts or [("", 1.0)]


def split_chunks(
    parts: Iterable[Part], tokenize: Callable[[str], list[int]], comma: int, *, most_tokens: int
) -> list[Chunk]:
    """Fill chunks of 75 tokens; one that is full ends at its last comma if that is at most
    `COMMA_REACH` tokens back. At least one chunk.

    Of the prompt only the first `most_tokens` are read, and no more chunks are made than these
    fill.
    """
    chunks, last_comma, left = [Chunk()], -1, most_tokens
    for part in parts:
        if part == BREAK:
            chunks.append(Chunk())
            last_comma = -1
            continue
        for token in tokenize(part[0])[:left]:
            left -= 1
            chunk = chunks[-1]
            if token == comma:
                last_comma = len(chunk.tokens)
            if len(chunk.tokens) == CHUNK_TOKENS:
                begin = (
                    last_comma + 1
                    if token != comma
                    and last_comma >= 0
                    and CHUNK_TOKENS - last_comma <= COMMA_REACH
                    else CHUNK_TOKENS
                )
                chunks.append(Chunk(chunk.tokens[begin:], chunk.weights[begin:]))
                del chunk.tokens[begin:], chunk.weights[begin:]
                last_comma = -1
            chunks[-1].tokens.append(token)
            chunks[-1].weights.append(part[1])
    if len(chunks) > 1 and not chunks[-1].tokens:
        chunks.pop()
    return chunks[: math.ceil(most_tokens / CHUNK_TOKENS)]
