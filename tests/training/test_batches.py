"""The order in which samples are trained."""

from lora_trainer.dataset.buckets import Bucket
from lora_trainer.training.batches import batches_per_epoch, bucket_counts, epoch_batches


def test_batches_hold_one_bucket_each_and_every_picture_once():
    buckets = [Bucket(64, 64)] * 5 + [Bucket(96, 32)] * 2
    batches = epoch_batches(buckets, [1] * 7, batch_size=3, seed=1, epoch=0)
    assert sorted(number for batch in batches for number in batch) == list(range(7))
    assert (
        all(len({buckets[number] for number in batch}) == 1 for batch in batches)
        and len(batches) == 3
    )
    assert (
        batches
        == epoch_batches(buckets, [1] * 7, batch_size=3, seed=1, epoch=0)
        != epoch_batches(buckets, [1] * 7, batch_size=3, seed=2, epoch=0)
    )


def test_batches_are_counted_by_bucket_with_repeats():
    buckets, repeats = [Bucket(64, 64), Bucket(64, 64), Bucket(96, 32)], [2, 3, 0]
    assert bucket_counts(buckets, repeats) == {Bucket(64, 64): 5, Bucket(96, 32): 0}
    assert batches_per_epoch(buckets, repeats, batch_size=2) == 3
