"""Aspect-ratio buckets: the size that each picture is trained in, what of it fits, and which
pictures make up which batch.
"""

import dataclasses
import functools
import math
from collections import defaultdict

import torch

from ..base.rng import generator


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A training size in pixels; sides are multiples of the bucket step.

    `covering` is the size `(width, height)` that a picture is scaled to before it is cropped, and
    no part of what makes buckets equal; None: the smallest that covers the bucket.
    """

    width: int
    height: int
    covering: tuple[int, int] | None = dataclasses.field(default=None, compare=False, repr=False)


def assign_bucket(
    width: int,
    height: int,
    *,
    resolution: int,
    step: int = 64,
    enable_bucket: bool = True,
    shortest: int = 0,
    longest: int = 0,
    no_upscale: bool = False,
) -> Bucket:
    """Return the training size for a picture: nearest in aspect ratio, of at most `resolution`²
    pixels, sides multiples of `step`.

    No side is shorter than `shortest` or longer than `longest` (0: four times the resolution), as
    kohya's min_bucket_reso and max_bucket_reso. With `no_upscale` the picture's own size decides
    and those two do not, as with kohya's bucket_no_upscale.
    """
    side = max(step, resolution // step * step)
    if not enable_bucket:
        return Bucket(side, side)
    if no_upscale:
        return _own_size(width, height, resolution**2, step)
    ratio = math.log(width / height)
    return min(
        _buckets(side, step, shortest, longest),
        key=lambda bucket: (
            round(abs(math.log(bucket.width / bucket.height) - ratio), 6),
            -bucket.width * bucket.height,
            (bucket.width, bucket.height),
        ),
    )


@functools.lru_cache(maxsize=64)
def _buckets(side: int, step: int, shortest: int, longest: int) -> tuple[Bucket, ...]:
    low, high = max(step, -(-shortest // step) * step), (longest or 4 * side) // step * step
    sizes = {
        (w, h)
        for w in range(low, high + 1, step)
        if low <= (h := min(high, side * side // w // step * step))
    }
    return tuple(Bucket(w, h) for w, h in {(side, side)} | sizes | {(h, w) for w, h in sizes})


def _own_size(width: int, height: int, area: int, step: int) -> Bucket:
    """Round a picture's own size down to the step. A picture of more than `area` pixels is scaled
    down to that first, so that one of its sides is a multiple of the step already: the side with
    which the bucket's shape is nearer to the picture's.
    """
    if width * height <= area:
        return _cut_to_step((width, height), step)
    ratio, scale = width / height, math.sqrt(area / (width * height))
    wide, tall = _down(int(width * scale + 0.5), step), _down(int(height * scale + 0.5), step)
    candidates = [
        _cut_to_step(size, step)
        for size in ((int(tall * ratio + 0.5), tall), (wide, int(wide / ratio + 0.5)))
    ]
    return min(candidates, key=lambda bucket: abs(bucket.width / bucket.height - ratio))


def _cut_to_step(covering: tuple[int, int], step: int) -> Bucket:
    return Bucket(*(_down(side, step) for side in covering), covering=covering)


def _down(side: int, step: int) -> int:
    """Round down to the step; a side that is shorter than that, to a multiple of 8, below which
    there are no latents.
    """
    return side // step * step or max(8, side // 8 * 8)


def covering_of(width: int, height: int, bucket: Bucket) -> tuple[int, int]:
    """Return the size in pixels that an upright picture is scaled to before it is cropped to its
    bucket.
    """
    if bucket.covering:
        return max(bucket.width, bucket.covering[0]), max(bucket.height, bucket.covering[1])
    scale = max(bucket.width / width, bucket.height / height)
    return max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))


def crop_of(width: int, height: int, bucket: Bucket) -> tuple[float, float, float, float]:
    """Return what of an upright picture fits its bucket, in its own pixels: left, top, width,
    height; and cut evenly from both sides.
    """
    scale = max(bucket.width / width, bucket.height / height)
    scales = (
        (scale, scale)
        if bucket.covering is None
        else tuple(
            long / own
            for long, own in zip(covering_of(width, height, bucket), (width, height), strict=True)
        )
    )
    kept = min(width, bucket.width / scales[0]), min(height, bucket.height / scales[1])
    return (width - kept[0]) / 2, (height - kept[1]) / 2, *kept


# --- Order ----------------------------------------------------------------------------------------


def epoch_batches(
    buckets: list[Bucket], repeats: list[int], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return one epoch's batches of picture numbers: each picture `repeats` times, one bucket a
    batch, shuffled by (seed, epoch).
    """
    draws = generator(seed, "order", epoch)
    members: dict[Bucket, list[int]] = defaultdict(list)
    for number, (bucket, count) in enumerate(zip(buckets, repeats, strict=True)):
        members[bucket].extend([number] * count)
    batches = []
    for numbers in members.values():
        shuffled = [numbers[at] for at in torch.randperm(len(numbers), generator=draws).tolist()]
        batches.extend(shuffled[at : at + batch_size] for at in range(0, len(shuffled), batch_size))
    return [batches[at] for at in torch.randperm(len(batches), generator=draws).tolist()]


def batches_per_epoch(buckets: list[Bucket], repeats: list[int], batch_size: int) -> int:
    counts: dict[Bucket, int] = defaultdict(int)
    for bucket, count in zip(buckets, repeats, strict=True):
        counts[bucket] += count
    return sum(-(-count // batch_size) for count in counts.values())
