"""Beam search over next-token logits: of the sentences that a model could say, those it finds
likeliest are followed side by side.

Written here because open_clip's own needs parts of transformers that come and go with its versions.
"""

import dataclasses
from collections.abc import Callable

import torch

NextLogits = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """How sentences are searched: `start` and `end` are tokens; sequences have `min_length` to
    `max_length` tokens and are compared by log-probability / length ** length_penalty, `end`
    counted.
    """

    start: int
    end: int
    beams: int
    max_length: int
    min_length: int = 0
    length_penalty: float = 1.0

    def score(self, log_probability: float, length: int) -> float:
        """Return what sequences of different lengths are compared by."""
        return log_probability / length**self.length_penalty


@torch.no_grad()
def beam_search(
    next_logits: NextLogits,
    count: int,
    search: BeamSearch,
    *,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """Return the best token sequence of each of `count` pictures, without `start` and `end`.

    `next_logits` takes int64 tokens `(count * beams, length)`, picture by picture, to `(count *
    beams, vocabulary)`. The search ends when as many as `beams` have ended and what is running
    seems to stay behind them, which is a guess where length_penalty > 0.
    """
    beams, end = search.beams, search.end
    sequences = torch.full((count, beams, 1), search.start, dtype=torch.long, device=device)
    scores = torch.full((count, beams), -torch.inf, device=device)
    scores[:, 0] = 0  # the beams are still the same: one of them counts
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    for length in range(1, search.max_length + 1):
        logits = next_logits(sequences.flatten(0, 1)).float()
        log_probabilities = logits.log_softmax(-1).view(count, beams, -1)
        if length <= search.min_length:
            log_probabilities[..., end] = -torch.inf
        candidates = scores[..., None] + log_probabilities  # (count, beams, vocabulary)
        worst = candidates.flatten(1).topk(beams).values[:, -1:]
        # A sequence ends only where that is among the likeliest.
        ended = candidates[..., end]
        endings = ended.masked_fill(ended < worst, -torch.inf)
        for picture, ending in enumerate(endings.tolist()):
            _finish(finished[picture], ending, sequences[picture], length, search)
        candidates[..., end] = -torch.inf
        scores, best = candidates.flatten(1).topk(beams)
        sequences = _extend(sequences, best, log_probabilities.shape[-1])
        running = scores.max(1).values.tolist()
        if all(
            _seems_over(found, likeliest, length, search)
            for found, likeliest in zip(finished, running, strict=True)
        ):
            break
    else:  # the greatest length is reached: what is running ends here
        for picture, ending in enumerate(scores.tolist()):
            _finish(finished[picture], ending, sequences[picture], search.max_length, search)
    return [max(found, key=lambda each: each[0])[1] for found in finished]


def _extend(sequences: torch.Tensor, best: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return the sequences `(count, beams, 1 + n)` that the best candidates continue, with their
    next token; `best` `(count, beams)` counts through beams and vocabulary.
    """
    parents, tokens = best // vocabulary, best % vocabulary
    kept = sequences.gather(1, parents[..., None].expand(-1, -1, sequences.shape[-1]))
    return torch.cat([kept, tokens[..., None]], dim=-1)


def _finish(
    finished: list[tuple[float, list[int]]],
    scores: list[float],
    sequences: torch.Tensor,
    length: int,
    search: BeamSearch,
) -> None:
    """Add the beams `(beams, 1 + n)` that could end here, and keep the best."""
    finished += [
        (search.score(score, length), sequence[1:])
        for score, sequence in zip(scores, sequences.tolist(), strict=True)
        if score > -torch.inf
    ]
    finished.sort(key=lambda each: -each[0])
    del finished[search.beams :]


def _seems_over(
    finished: list[tuple[float, list[int]]], running: float, length: int, search: BeamSearch
) -> bool:
    """Guess whether what is still running, ended with its next word, would stay behind all that has
    ended.

    It only becomes less likely, so for length_penalty <= 0 that is sure. Above it is a heuristic,
    the one of transformers' `early_stopping=False`: divided by a greater length a score can still
    rise (-3.0 / 10 > -0.7 / 1). To be sure, nearly every search would go on to `max_length`.
    """
    return len(finished) == search.beams and finished[-1][0] >= search.score(running, length + 1)
