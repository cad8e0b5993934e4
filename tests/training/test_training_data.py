"""The order of batches, and which pictures are validated when."""

from collections import Counter

from lora_trainer.dataset.buckets import Bucket
from lora_trainer.training.training_data import StepSchedule
from tests.support.samples import encoded_pictures
from tests.support.training import make_training_data


def test_every_epoch_shows_each_picture_as_often_as_its_repeats():
    pictures = encoded_pictures(repeats=(1, 2, 3, 1))
    schedule = StepSchedule(total_steps=8, steps_per_epoch=4, batch_size=2, accumulation=1, seed=3)
    epochs = [
        [
            number
            for step in steps
            for batch in schedule.batches_of(step, pictures)
            for number in batch
        ]
        for steps in (range(4), range(4, 8))
    ]
    assert Counter(epochs[0]) == Counter(epochs[1]) == {0: 1, 1: 2, 2: 3, 3: 1}
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_step_alone():
    schedule = StepSchedule(100, 2, 2, 1, 3)
    pictures = encoded_pictures()
    assert [schedule.batches_of(step, pictures) for step in (7, 3)] == [
        schedule.batches_of(step, pictures) for step in (7, 3)
    ]


def test_largest_batch_is_what_a_bucket_can_fill():
    pictures = encoded_pictures(repeats=(1, 2, 0))
    pictures += encoded_pictures(repeats=(2,), bucket=Bucket(64, 128))
    assert make_training_data(pictures, StepSchedule(1, 1, 256, 1, 0)).largest_batch() == 3
    assert make_training_data(pictures, StepSchedule(1, 1, 2, 1, 0)).largest_batch() == 2


def test_each_epoch_is_validated_where_no_number_of_steps_is_given():
    training_data = make_training_data(
        encoded_pictures(repeats=(1, 1, 1, 0)),
        StepSchedule(10, 3, 1, 1, 0),
        validation_indices=(3,),
    )
    assert [step for step in range(1, 11) if training_data.is_validated_after(step)] == [
        3,
        6,
        9,
        10,
    ]
