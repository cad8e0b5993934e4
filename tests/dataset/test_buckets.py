"""The size that each picture is trained in, with limits and without enlarging, and what of it is
cut off.
"""

import itertools
import math

import pytest

from lora_trainer.dataset.buckets import (
    Bucket,
    assign_bucket,
    bucket_for,
    crop_of,
    size_covering,
)
from lora_trainer.editor import checks
from lora_trainer.settings.config import TrainConfig

SIZES = [(1000, 1000), (1920, 1080), (700, 300), (90, 700), (3000, 1000), (513, 511), (200, 64)]


def expected_bucket(width, height, side, step, low, high):
    """Every pair of sides that is allowed, tried one by one; as large as it can be for its width or
    its height.
    """
    sides = range(low, high + 1, step)
    fitting = [(w, h) for w, h in itertools.product(sides, sides) if w * h <= side * side]
    largest = [
        (w, h)
        for w, h in fitting
        if (w, min(h + step, high)) not in fitting
        or h == high
        or (min(w + step, high), h) not in fitting
        or w == high
    ]
    near = min(abs(math.log(w / h) - math.log(width / height)) for w, h in largest)
    return {
        (w, h)
        for w, h in largest
        if abs(abs(math.log(w / h) - math.log(width / height)) - near) < 1e-6
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shortest, longest", [(0, 0), (256, 1024), (200, 700), (0, 512), (512, 0)])
def test_buckets_within_limits_against_all_sizes_that_there_are(size, shortest, longest):
    low, high = max(64, math.ceil(shortest / 64) * 64), (longest or 2048) // 64 * 64
    bucket = assign_bucket(*size, resolution=512, shortest=shortest, longest=longest)
    assert (bucket.width, bucket.height) in expected_bucket(*size, 512, 64, low, high)
    assert (
        low <= min(bucket.width, bucket.height)
        and max(bucket.width, bucket.height) <= high
        and bucket.width * bucket.height <= 512 * 512
    )


def test_the_longest_side_narrows_long_buckets():
    assert assign_bucket(2000, 500, resolution=512, longest=640) == Bucket(
        640, 192
    )  # 4:1 would be 1024x256
    assert assign_bucket(2000, 500, resolution=512, longest=640, shortest=256) == Bucket(640, 256)


@pytest.mark.parametrize(
    "size, bucket, covering",
    [
        ((300, 500), (256, 448), (300, 500)),  # smaller than the area: as it is, cut to the step
        ((512, 512), (512, 512), (512, 512)),
        (
            (1000, 800),
            (512, 384),
            (512, 410),
        ),  # 572.4x457.9 has the area: 512/384 = 1.33 is nearer to 1.25 than 512/448 = 1.14
        ((800, 1000), (384, 512), (410, 512)),
        ((2048, 2048), (512, 512), (512, 512)),
        ((40, 100), (40, 64), (40, 100)),  # a side shorter than the step: to a multiple of 8
    ],
)
def test_without_enlarging_the_own_size_decides(size, bucket, covering):
    found = assign_bucket(*size, resolution=512, no_upscale=True, shortest=256)
    assert (found.width, found.height) == bucket and found.covering == covering == size_covering(
        *size, found
    )


@pytest.mark.parametrize("size", SIZES + [(20, 100), (100, 20)])
@pytest.mark.parametrize("step", [8, 64])
def test_nothing_is_enlarged_and_little_is_cut(size, step):
    bucket = assign_bucket(*size, resolution=512, step=step, no_upscale=True)
    wide, tall = size_covering(*size, bucket)
    assert (
        wide <= size[0]
        and tall <= size[1]
        and 0 <= wide - bucket.width < max(step, 9)
        and 0 <= tall - bucket.height < max(step, 9)
    )
    assert (
        bucket.width * bucket.height < 512 * 512 * 1.005
        and abs(wide / tall / (size[0] / size[1]) - 1) < 0.02
    )


def test_pictures_of_one_bucket_come_together_whatever_they_are_scaled_to():
    first, second = (
        assign_bucket(*size, resolution=512, no_upscale=True) for size in ((300, 300), (310, 260))
    )
    assert (
        first == second == Bucket(256, 256)
        and hash(first) == hash(second)
        and first.covering != second.covering
    )


def test_the_crop_in_the_pictures_own_pixels():
    assert crop_of(300, 500, assign_bucket(300, 500, resolution=512, no_upscale=True)) == (
        22,
        26,
        256,
        448,
    )
    assert crop_of(192, 64, Bucket(64, 64)) == (64, 0, 64, 64)


def test_the_editor_and_a_run_have_the_same_bucket_for_a_picture():
    """Once it was worked out in two places, each from settings of its own."""
    for changes in ({}, {"bucket_step": 96}, {"resolution": 100}, {"bucket_no_upscale": True}):
        config, checked = TrainConfig().replace(**changes), checks.CheckSettings(**changes)
        for size in SIZES:
            bucket = bucket_for(*size, config)
            assert bucket == bucket_for(*size, checked)
            assert checks.crop_for(*size, checked).bucket == bucket
    assert bucket_for(100, 100, TrainConfig(), resolution=128) == Bucket(128, 128)


@pytest.mark.parametrize(
    "size, expected",
    [
        ((1000, 1000), (512, 512)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((3000, 1000), (832, 256)),
    ],
)
def test_buckets_keep_the_shape_and_the_area(size, expected):
    bucket = assign_bucket(*size, resolution=512)
    assert (bucket.width, bucket.height) == expected and bucket.width * bucket.height <= 512 * 512


def test_without_buckets_everything_is_square():
    assert assign_bucket(1920, 1080, resolution=512, enable_bucket=False) == Bucket(512, 512)
