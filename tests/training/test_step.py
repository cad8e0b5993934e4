"""The gradient of a step: batches and micro-batches add up, weights and masks reach it."""

import dataclasses
import types

import pytest
import torch

from lora_trainer.base.rng import generator
from lora_trainer.dataset.caption_augmentation import CaptionAugmentation
from lora_trainer.training import diffusion, loop, step
from lora_trainer.training.compute_mode import ComputeMode
from lora_trainer.training.encoded_dataset import assemble
from lora_trainer.training.model_patches import ModelPatches
from lora_trainer.training.training_data import StepSchedule
from tests.support.samples import encoded_pictures
from tests.support.training import (
    gradients,
    make_adapters,
    make_train_state,
    make_training_data,
)


def test_accumulated_gradient_is_the_mean_of_its_batches(host):
    pictures, model = encoded_pictures(), host.model
    adapters = make_adapters(model)
    schedule = StepSchedule(1, 1, 2, 2, 0)
    _, together = gradients(model, adapters, make_training_data(pictures, schedule))
    expected = [torch.zeros_like(gradient) for gradient in together]
    with adapters.attached():
        for part, numbers in enumerate(schedule.batches_of(0, pictures)):
            for parameter in adapters.parameters():
                parameter.grad = None
            batch = assemble(pictures, numbers, seed=0, number=part)
            noise = torch.randn(batch.latents.shape, generator=generator(0, "noise", part))
            timesteps = torch.randint(0, 1000, (2,), generator=generator(0, "timesteps", part))
            noisy = diffusion.add_noise(batch.latents, noise, timesteps, model.alphas_cumprod)
            ((model.predict(noisy, timesteps, batch.conditioning) - noise) ** 2).mean().backward()
            for total, parameter in zip(expected, adapters.parameters()):
                total += parameter.grad / 2
    assert all(
        torch.allclose(mine, theirs, atol=1e-7) for mine, theirs in zip(together, expected)
    ) and any(gradient.any() for gradient in together)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_micro_batches_give_the_gradient_of_the_batch(host, text_encoder):
    adapters = make_adapters(host.model, text_encoder=text_encoder)
    training_data = make_training_data(
        encoded_pictures(), StepSchedule(1, 1, 4, 1, 0), trained=text_encoder
    )
    whole, portions = (
        gradients(
            host.model,
            adapters,
            training_data,
            ComputeMode(torch.float32, micro_batch_size=micro_batch_size),
        )
        for micro_batch_size in (0, 3)
    )
    assert whole[0] == pytest.approx(portions[0], rel=1e-6)
    assert all(
        torch.allclose(mine, theirs, atol=1e-7) for mine, theirs in zip(whole[1], portions[1])
    ) and any(gradient.any() for gradient in whole[1])


LENGTHS = ("short", "long " * 30, "longer " * 50, "of two words")


@pytest.mark.parametrize("trained", [False, True])
def test_micro_batches_get_conditioning_as_long_as_the_whole_batch(host, trained):
    """The first portion has the longest caption, the second none of its length."""
    adapters = make_adapters(host.model, text_encoder=trained)
    pictures = [
        dataclasses.replace(
            picture,
            sample=dataclasses.replace(picture.sample, caption=caption),
            conditioning=None,
        )
        for picture, caption in zip(encoded_pictures(), LENGTHS)
    ]
    training_data = make_training_data(
        pictures,
        StepSchedule(1, 1, 4, 1, 0),
        variation=CaptionAugmentation(caption_dropout=0.01),
        trained=trained,
    )
    whole, portions = (
        gradients(
            host.model,
            adapters,
            training_data,
            ComputeMode(torch.float32, micro_batch_size=micro_batch_size),
        )
        for micro_batch_size in (0, 1)
    )
    assert all(
        torch.allclose(mine, theirs, atol=1e-7) for mine, theirs in zip(whole[1], portions[1])
    ) and any(gradient.any() for gradient in whole[1])


def test_weights_and_masks_reach_the_gradient(host):
    adapters, schedule = make_adapters(host.model), StepSchedule(1, 1, 2, 1, 0)
    loss, plain = gradients(host.model, adapters, make_training_data(encoded_pictures(2), schedule))
    half, weighted = gradients(
        host.model,
        adapters,
        make_training_data(encoded_pictures(2, loss_weight=0.5, role="regularisation"), schedule),
    )
    nothing, masked = gradients(
        host.model,
        adapters,
        make_training_data(encoded_pictures(2, masks=torch.zeros(1, 1, 8, 8)), schedule),
    )
    assert half == pytest.approx(loss / 2) and all(
        torch.allclose(mine, theirs / 2, atol=1e-9) for mine, theirs in zip(weighted, plain)
    )
    assert nothing == 0 and not any(gradient.any() for gradient in masked)


def test_gradient_checkpointing_changes_nothing_with_dropout(host):
    adapters = make_adapters(
        host.model, text_encoder=True, dropout=0.5, rank_dropout=0.3, module_dropout=0.3
    )
    train_state = make_train_state(adapters)
    training_data = make_training_data(
        encoded_pictures(), StepSchedule(1, 1, 4, 1, 0), trained=True
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).applied() as patches:
        loop.train(patches, train_state, training_data)  # up-weights are zero no more
    plain = gradients(host.model, adapters, training_data)
    with ModelPatches(
        host.model, adapters, ComputeMode(torch.float32, gradient_checkpointing=True)
    ).applied():
        again = gradients(host.model, adapters, training_data)
    assert plain[0] == again[0] and all(
        torch.allclose(mine, theirs, atol=1e-8) for mine, theirs in zip(plain[1], again[1])
    )


def test_seeding_dropout_leaves_other_devices_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    drawn = types.SimpleNamespace(seed=3, number=5)
    before = torch.get_rng_state()
    with step._seeded_dropout(torch.device("cpu"), drawn, 0):
        found = torch.rand(4)
    assert not seeded and torch.equal(torch.get_rng_state(), before)
    expected = torch.Generator().manual_seed(generator(3, "dropout", 5).initial_seed())
    assert torch.equal(found, torch.rand(4, generator=expected))
