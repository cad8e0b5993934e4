"""Beam search over next-token logits: of the sentences that a model could say, those it finds
likeliest are followed side by side.

Written here because open_clip's own needs parts of transformers that come and go with its versions.
"""

from collections.abc import Callable

import torch

NextLogits = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def beam_search(  # noqa: PLR0913
    next_logits: NextLogits,
    count: int,
    *,
    start: int,
    end: int,
    beams: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 1.0,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """Return the best token sequence of each of `count` pictures, without `start` and `end`.

    `next_logits` takes int64 tokens `(count * beams, length)`, picture by picture, to `(count *
    beams, vocabulary)`. Sequences have `min_length` to `max_length` tokens. They are compared by
    log-probability / length ** length_penalty, `end` counted. It ends when as many as `beams` have
    ended and what is running seems to stay behind them, which is a guess where length_penalty > 0.
    """
    sequences = torch.full((count, beams, 1), start, dtype=torch.long, device=device)
    scores = torch.full((count, beams), -torch.inf, device=device)
    scores[:, 0] = 0  # the beams are still the same: one of them counts
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    for length in range(1, max_length + 1):
        shares = next_logits(sequences.flatten(0, 1)).float().log_softmax(-1).view(count, beams, -1)
        if length <= min_length:
            shares[..., end] = -torch.inf
        candidates = scores[..., None] + shares  # (count, beams, vocabulary)
        worst = candidates.flatten(1).topk(beams).values[:, -1:]
        endings = candidates[..., end].masked_fill(
            candidates[..., end] < worst, -torch.inf
        )  # one ends only where that is among the likeliest
        for picture, ending in enumerate(endings.tolist()):
            _finish(finished[picture], ending, sequences[picture], length, length_penalty, beams)
        candidates[..., end] = -torch.inf
        scores, best = candidates.flatten(1).topk(beams)
        parents, tokens = best // shares.shape[-1], best % shares.shape[-1]
        sequences = torch.cat(
            [sequences.gather(1, parents[..., None].expand(-1, -1, length)), tokens[..., None]],
            dim=-1,
        )
        if all(
            _seems_over(found, running, length, length_penalty, beams)
            for found, running in zip(finished, scores.max(1).values.tolist(), strict=False)
        ):
            break
    else:  # the greatest length is reached: what is running ends here
        for picture, running in enumerate(scores.tolist()):
            _finish(
                finished[picture], running, sequences[picture], max_length, length_penalty, beams
            )
    return [max(found, key=lambda each: each[0])[1] for found in finished]


def _finish(
    finished: list[tuple[float, list[int]]],
    scores: list[float],
    sequences: torch.Tensor,
    length: int,
    penalty: float,
    beams: int,
) -> None:
    """Add the beams `(beams, 1 + n)` that could end here, and keep the best."""
    finished += [
        (score / length**penalty, sequence[1:])
        for score, sequence in zip(scores, sequences.tolist(), strict=False)
        if score > -torch.inf
    ]
    finished.sort(key=lambda each: -each[0])
    del finished[beams:]


def _seems_over(
    finished: list[tuple[float, list[int]]], running: float, length: int, penalty: float, beams: int
) -> bool:
    """Guess whether what is still running, ended with its next word, would stay behind all that has
    ended.

    It only becomes less likely, so for penalty <= 0 that is sure. Above it is a heuristic, the one
    of transformers' `early_stopping=False`: divided by a greater length a score can still rise
    (-3.0 / 10 > -0.7 / 1). To be sure, nearly every search would go on to `max_length`.
    """
    return len(finished) == beams and finished[-1][0] >= running / (length + 1) ** penalty
