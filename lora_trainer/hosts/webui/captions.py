"""Captions as the WebUI reads prompts: chunks of 75 tokens by its own code, and weights where they
are asked for. Embeddings are not called by name.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from modules import sd_emphasis, shared
from modules.sd_hijack_clip import PromptChunk, TextConditionalModel

from ...base.contracts import ModelOptions

if TYPE_CHECKING:
    from modules.sd_hijack import StableDiffusionModelHijack

LITERAL = "caption"  # a line without brackets, in whose place a caption's tokens are put


class _WithoutEmbeddings:
    """Stands in for a text encoder's wrapper in the WebUI's own `tokenize_line`, with another
    `tokenize`.
    """

    def __init__(
        self, text: TextConditionalModel, tokenize: Callable[[list[str]], list[list[int]]]
    ) -> None:
        self.tokenize = tokenize
        self.chunk_length = text.chunk_length
        self.id_start = text.id_start
        self.id_end = text.id_end
        self.comma_token = text.comma_token
        self.hijack = self.embedding_db = self

    def find_embedding_at_position(self, tokens: list[int], position: int) -> tuple[None, None]:
        return None, None


def chunks_of(text: TextConditionalModel, caption: str, options: ModelOptions) -> list[PromptChunk]:
    """Split a caption for a text encoder's wrapper: literally, or with `(word:1.2)`, `[word]` and
    `BREAK` as the setting Emphasis mode says.
    """
    left = options.max_token_length

    def tokenize(parts: list[str]) -> list[list[int]]:
        nonlocal left
        found = text.tokenize(parts if options.weighted_captions else [caption])
        for number, tokens in enumerate(found):
            if not options.weighted_captions or parts[number] != "BREAK":
                found[number] = tokens[:left]
                left -= len(found[number])
        return found

    chunks, _ = TextConditionalModel.tokenize_line(
        _WithoutEmbeddings(text, tokenize), caption if options.weighted_captions else LITERAL
    )
    return chunks[: math.ceil(options.max_token_length / text.chunk_length)]


def token_rows(text: TextConditionalModel, chunks: list[PromptChunk]) -> list[list[int]]:
    """Return 77 token numbers for each chunk: start, tokens, end, and what this text encoder is
    filled up with.
    """
    rows = []
    for chunk in chunks:
        length = chunk.tokens.index(text.id_end) + 1
        rows.append(chunk.tokens[:length] + [text.id_pad] * (len(chunk.tokens) - length))
    return rows


def emphasized(states: torch.Tensor, chunks: list[PromptChunk]) -> torch.Tensor:
    """Apply the chunks' weights to hidden states `(batch, 77, width)` as the setting Emphasis mode
    says, each caption by itself.
    """
    return torch.cat(
        [_emphasized(states[number : number + 1], chunk) for number, chunk in enumerate(chunks)]
    )


def _emphasized(states: torch.Tensor, chunk: PromptChunk) -> torch.Tensor:
    if all(weight == 1 for weight in chunk.multipliers):
        return states
    emphasis = sd_emphasis.get_current_option(shared.opts.emphasis)()
    emphasis.tokens = [chunk.tokens]
    emphasis.multipliers = torch.tensor([chunk.multipliers], device=states.device)
    emphasis.z = states
    emphasis.after_transformers()
    return emphasis.z


@contextlib.contextmanager
def no_embeddings_left(hijack: "StableDiffusionModelHijack") -> Iterator[None]:
    """Leave out the embeddings that a picture's prompt called by name."""
    fixes = hijack.fixes
    hijack.fixes = None
    try:
        yield
    finally:
        hijack.fixes = fixes


def key_of(options: ModelOptions) -> str:
    """Name the settings that decide how captions are read, besides the clip skip."""
    weighted = f", weighted ({shared.opts.emphasis})" if options.weighted_captions else ""
    return (
        f"{options.max_token_length} tokens, comma {shared.opts.comma_padding_backtrack}{weighted}"
    )
