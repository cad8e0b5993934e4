"""The validation loss: repeatable, without dropout, at timesteps that are trained."""

import pytest
import torch

from lora_trainer.base.rng import generator
from lora_trainer.training import diffusion, validation
from lora_trainer.training.compute_mode import ComputeMode
from lora_trainer.training.model_patches import ModelPatches
from lora_trainer.training.objective import Objective
from lora_trainer.training.training_data import StepSchedule
from tests.support.samples import encoded_pictures
from tests.support.training import make_adapters, make_training_data


def test_validation_repeats_itself_without_dropout_and_changes_nothing(host):
    adapters = make_adapters(host.model, dropout=0.5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    training_data = make_training_data(
        encoded_pictures(repeats=(1, 1, 1, 0)),
        StepSchedule(1, 1, 2, 1, 0),
        validation_indices=(3,),
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).applied() as patches:
        state = torch.get_rng_state()
        one, two = (
            validation.validate(patches, training_data),
            validation.validate(patches, training_data),
        )
        assert one == two and torch.equal(state, torch.get_rng_state())
    expected, picture = [], training_data.encoded[3]
    for place in range(4):
        timesteps, noise = (
            torch.tensor([125 + 250 * place]),
            torch.randn(1, 4, 8, 8, generator=generator(0, f"validation {place}", 3)),
        )
        quiet = make_adapters(host.model)
        quiet.load(adapters.weights())
        with torch.no_grad(), quiet.attached():
            predicted = host.model.predict(
                diffusion.add_noise(picture.latents, noise, timesteps, host.model.alphas_cumprod),
                timesteps,
                picture.conditioning,
            )
        expected.append(((predicted - noise) ** 2).mean().item())
    assert one == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_validation_is_broken_off_by_a_stop(host):
    training_data = make_training_data(
        encoded_pictures(repeats=(1, 1, 0, 0)),
        StepSchedule(1, 1, 2, 1, 0),
        validation_indices=(2, 3),
    )
    adapters, answers = make_adapters(host.model), iter([True, False])
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).applied() as patches:
        assert (
            validation.validate(patches, training_data, lambda: next(answers)) is None
            and validation.validate(patches, training_data) > 0
        )


def test_validation_timesteps_are_among_those_that_are_trained(host, monkeypatch):
    seen, predict = [], host.model.predict
    monkeypatch.setattr(
        host.model,
        "predict",
        lambda noisy, timesteps, finished: (
            seen.extend(timesteps.tolist()),
            predict(noisy, timesteps, finished),
        )[1],
    )
    training_data = make_training_data(
        encoded_pictures(repeats=(1, 1, 1, 0)),
        StepSchedule(1, 1, 2, 1, 0),
        Objective(min_timestep=100, max_timestep=300),
        validation_indices=(3,),
    )
    with ModelPatches(
        host.model, make_adapters(host.model), ComputeMode(torch.float32)
    ).applied() as patches:
        validation.validate(patches, training_data)
    assert seen == [125, 175, 225, 275]


def test_validation_with_sixteen_bit_weights_encodes_as_training_does(host):
    adapters = make_adapters(host.model, text_encoder=True)
    host.model.parts().bfloat16()
    training_data = make_training_data(
        encoded_pictures(repeats=(1, 1, 1, 0)),
        StepSchedule(1, 1, 2, 1, 0),
        trained=True,
        validation_indices=(3,),
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.bfloat16)).applied() as patches:
        assert validation.validate(patches, training_data) > 0


def test_a_loss_that_is_not_finite_is_one_warning_however_often(host, monkeypatch):
    monkeypatch.setattr(validation, "validate", lambda *args: float("nan"))
    schedule, warnings = StepSchedule(4, 1, 1, 1, 0), []
    training_data = make_training_data(
        encoded_pictures(repeats=(1, 0)), schedule, validation_indices=(1,), validate_every=1
    )
    for step in (1, 2):
        found = validation.validate_if_due(None, training_data, step, lambda: True, warnings.append)
        assert found is None
    assert len(warnings) == 2 and len(set(warnings)) == 1
