"""Aspect-ratio buckets: the size that each picture is trained in, and what of it fits.

How buckets make up batches is in training.batches.
"""

import dataclasses
import functools
import math
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A training size in pixels; sides are multiples of the bucket step.

    `covering` is the size `(width, height)` that a picture is scaled to before it is cropped; None:
    the smallest that covers the bucket. Buckets are equal whatever their `covering`.
    """

    width: int
    height: int
    covering: tuple[int, int] | None = dataclasses.field(default=None, compare=False, repr=False)


class BucketSettings(Protocol):
    """The settings that buckets depend on, named as in TrainConfig."""

    @property
    def resolution(self) -> int: ...
    @property
    def enable_bucket(self) -> bool: ...
    @property
    def bucket_step(self) -> int: ...
    @property
    def bucket_min(self) -> int: ...
    @property
    def bucket_max(self) -> int: ...
    @property
    def bucket_no_upscale(self) -> bool: ...


def bucket_for(
    width: int, height: int, settings: BucketSettings, *, resolution: int | None = None
) -> Bucket:
    """Return the bucket of a picture of this upright size, as the settings say.

    `resolution` in pixels counts instead of the settings' own. The step is never larger than it.
    """
    side = resolution or settings.resolution
    return assign_bucket(
        width,
        height,
        resolution=side,
        step=min(settings.bucket_step, side // 8 * 8),
        enable_bucket=settings.enable_bucket,
        shortest=settings.bucket_min,
        longest=settings.bucket_max,
        no_upscale=settings.bucket_no_upscale,
    )


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
    """Return the training size nearest to a picture's aspect ratio, at most `resolution`² pixels.

    Sides are multiples of `step`, and none is shorter than `shortest` or longer than `longest` (0:
    four times the resolution), as kohya's min_bucket_reso and max_bucket_reso. With `no_upscale`
    the picture's own size decides and those two do not, as with kohya's bucket_no_upscale.
    """
    side = max(step, resolution // step * step)
    if not enable_bucket:
        return Bucket(side, side)
    if no_upscale:
        return _own_size(width, height, resolution**2, step)
    ratio = math.log(width / height)

    def distance(bucket: Bucket) -> tuple[float, int, int, int]:
        """Compare by aspect ratio; then the larger bucket, then the narrower one comes first."""
        difference = abs(math.log(bucket.width / bucket.height) - ratio)
        return (round(difference, 6), -bucket.width * bucket.height, bucket.width, bucket.height)

    return min(_buckets(side, step, shortest, longest), key=distance)


@functools.lru_cache(maxsize=64)
def _buckets(side: int, step: int, shortest: int, longest: int) -> tuple[Bucket, ...]:
    """Return the square, and for each width within the limits the bucket of most height."""
    low = max(step, -(-shortest // step) * step)
    high = (longest or 4 * side) // step * step
    sizes = {(side, side)}
    for width in range(low, high + 1, step):
        height = min(high, side * side // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return tuple(Bucket(*size) for size in sizes)


def _own_size(width: int, height: int, area: int, step: int) -> Bucket:
    """Round a picture's own size down to the step, after scaling it down to at most `area` pixels.

    It is scaled so that one of its sides is a multiple of the step already: the side with which the
    bucket's aspect ratio is nearer to the picture's.
    """
    if width * height <= area:
        return _cut_to_step((width, height), step)
    ratio = width / height
    scale = math.sqrt(area / (width * height))
    kept_width = _down(int(width * scale + 0.5), step)
    kept_height = _down(int(height * scale + 0.5), step)
    candidates = [
        _cut_to_step((int(kept_height * ratio + 0.5), kept_height), step),
        _cut_to_step((kept_width, int(kept_width / ratio + 0.5)), step),
    ]
    return min(candidates, key=lambda bucket: abs(bucket.width / bucket.height - ratio))


def _cut_to_step(covering: tuple[int, int], step: int) -> Bucket:
    width, height = covering
    return Bucket(_down(width, step), _down(height, step), covering=covering)


def _down(side: int, step: int) -> int:
    """Round down to the step; a side shorter than the step to a multiple of 8, at least 8."""
    return side // step * step or max(8, side // 8 * 8)


def size_covering(width: int, height: int, bucket: Bucket) -> tuple[int, int]:
    """Return the size in pixels that an upright picture is scaled to before it is cropped."""
    if bucket.covering:
        return max(bucket.width, bucket.covering[0]), max(bucket.height, bucket.covering[1])
    scale = max(bucket.width / width, bucket.height / height)
    return max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))


def crop_of(width: int, height: int, bucket: Bucket) -> tuple[float, float, float, float]:
    """Return what of an upright picture fits its bucket: left, top, width and height in its pixels.

    The rest is cut evenly from both sides.
    """
    scale_x = scale_y = max(bucket.width / width, bucket.height / height)
    if bucket.covering is not None:
        covering = size_covering(width, height, bucket)
        scale_x, scale_y = covering[0] / width, covering[1] / height
    kept_width = min(width, bucket.width / scale_x)
    kept_height = min(height, bucket.height / scale_y)
    return (width - kept_width) / 2, (height - kept_height) / 2, kept_width, kept_height
