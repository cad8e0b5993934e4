"""The loop: what learns, when validation takes place, and what is reported."""

import torch

from lora_trainer.training import loop, validation
from lora_trainer.training.compute_mode import ComputeMode
from lora_trainer.training.model_patches import ModelPatches
from lora_trainer.training.recovery import Recovery
from lora_trainer.training.training_data import StepSchedule
from tests.support.samples import encoded_pictures
from tests.support.training import (
    make_adapters,
    make_train_state,
    make_training_data,
)


def test_text_encoder_learns_through_its_captions(host):
    adapters = make_adapters(host.model, text_encoder=True)
    train_state, training_data = (
        make_train_state(adapters, steps=3),
        make_training_data(encoded_pictures(), StepSchedule(3, 1, 4, 1, 0), trained=True),
    )
    before = {path: factors["lora_up.weight"] for path, factors in adapters.weights().items()}
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).applied() as patches:
        loop.train(patches, train_state, training_data)
    after = {path: factors["lora_up.weight"] for path, factors in adapters.weights().items()}
    assert all(not torch.equal(before[path], after[path]) for path in before) and {
        path.partition(".")[0] for path in after
    } == {"unet", "te1"}


def test_validation_pictures_are_not_trained_on(host):
    pictures, finished = encoded_pictures(repeats=(1, 1, 1, 0)), []
    schedule = StepSchedule(6, 2, 2, 1, 0)
    assert all(3 not in batch for step in range(6) for batch in schedule.batches_of(step, pictures))
    adapters = make_adapters(host.model)
    train_state, training_data = (
        make_train_state(adapters, steps=6),
        make_training_data(pictures, schedule, validation_indices=(3,), validate_every=4),
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).applied() as patches:
        loop.train(
            patches,
            train_state,
            training_data,
            callbacks=loop.LoopCallbacks(after_step=finished.append),
        )
    assert [done.step for done in finished if done.validation_loss is not None] == [4, 6]


def test_a_validation_loss_that_is_not_finite_is_left_out_with_a_warning(host, monkeypatch):
    adapters, warnings, finished = make_adapters(host.model), [], []
    training_data = make_training_data(
        encoded_pictures(repeats=(1, 1, 1, 0)),
        StepSchedule(2, 1, 2, 1, 0),
        validation_indices=(3,),
    )
    monkeypatch.setattr(validation, "validate", lambda *arguments: float("nan"))
    train_state = make_train_state(adapters, steps=2)
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).applied() as patches:
        loop.train(
            patches,
            train_state,
            training_data,
            callbacks=loop.LoopCallbacks(after_step=finished.append),
            recovery=Recovery(patches, train_state, training_data, warn=warnings.append),
        )
    assert [done.validation_loss for done in finished] == [
        None,
        None,
    ] and "not a finite number any more;" in warnings[0]
