"""The order in which samples are trained: batches of one bucket each, shuffled for every epoch.

The order depends on (seed, epoch) alone, so a resumed run continues in it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from ..base.rng import generator
from ..dataset.buckets import Bucket


def epoch_batches(
    buckets: Sequence[Bucket], repeats: Sequence[int], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return one epoch's batches as lists of sample indices; a batch is of one bucket.

    `buckets` and `repeats` have one entry for each sample. Each index occurs `repeats` times.
    """
    rng = generator(seed, "order", epoch)
    members: dict[Bucket, list[int]] = defaultdict(list)
    for index, (bucket, count) in enumerate(zip(buckets, repeats, strict=True)):
        members[bucket].extend([index] * count)
    batches: list[list[int]] = []
    for indices in members.values():
        shuffled = _shuffled(indices, rng)
        batches.extend(shuffled[at : at + batch_size] for at in range(0, len(shuffled), batch_size))
    return _shuffled(batches, rng)


def _shuffled(items: list, rng: torch.Generator) -> list:
    return [items[at] for at in torch.randperm(len(items), generator=rng).tolist()]


def bucket_counts(buckets: Sequence[Bucket], repeats: Sequence[int]) -> Counter[Bucket]:
    """Count the samples of an epoch by bucket, repeats included; buckets without any are 0."""
    counts: Counter[Bucket] = Counter()
    for bucket, count in zip(buckets, repeats, strict=True):
        counts[bucket] += count
    return counts


def batches_per_epoch(buckets: Sequence[Bucket], repeats: Sequence[int], *, batch_size: int) -> int:
    """Return how many batches an epoch has; the last batch of each bucket may be smaller."""
    counts = bucket_counts(buckets, repeats)
    return sum(-(-count // batch_size) for count in counts.values())
