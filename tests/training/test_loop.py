"""Order of batches, and gradients that add up."""

import dataclasses
from collections import Counter

import pytest
import torch

from lora_trainer.base.contracts import Conditioning, Size
from lora_trainer.base.rng import generator
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.caption_augmentation import CaptionAugmentation
from lora_trainer.lora.adapter_layers import AdapterSpec
from lora_trainer.lora.adapters import Adapters
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
from lora_trainer.training import diffusion, loop
from lora_trainer.training.compute_mode import ComputeMode
from lora_trainer.training.conditioning import Texts
from lora_trainer.training.encoded_dataset import Encoded, assemble
from lora_trainer.training.model_patches import ModelPatches
from lora_trainer.training.objective import Objective
from lora_trainer.training.optimizers import LearningRates, make_optimizer
from lora_trainer.training.precision import grad_scaler
from lora_trainer.training.train_state import TrainState

CPU, PLAIN = torch.device("cpu"), CaptionAugmentation()
SIZE = Size(64, 64, 0, 0, 64, 64)


def encoded_pictures(count=4, **changes):
    draws = torch.Generator().manual_seed(0)
    return [
        Encoded(
            **{
                "latents": torch.randn(1, 4, 8, 8, generator=draws),
                "masks": None,
                "sizes": (SIZE,),
                "caption": f"picture, number {number}",
                "weight": 1.0,
                "regularisation": False,
                "conditioning": Conditioning(torch.randn(1, 77, 12, generator=draws)),
                "bucket": Bucket(64, 64),
                **changes,
            }
        )
        for number in range(count)
    ]


def lesson_of(pictures, schedule, objective=Objective(), variation=PLAIN, trained=False, **more):
    return loop.TrainingData(
        pictures, schedule, objective, Texts(variation, trained=trained), **more
    )


def adapters_of(model, *, text_encoder=False, **form):
    parts = model.parts()
    parts.requires_grad_(False)
    return Adapters.create(
        parts,
        assign_ranks(
            parts, LayerSettings(targets="attention", rank=4, alpha=4.0, text_encoder=text_encoder)
        ),
        AdapterSpec(**form),
    )


def learner_of(adapters, *, rate=1e-2, steps=4, **settings):
    optimizer = make_optimizer(
        "adamw", {"all": adapters.parameters()}, learning_rates={"all": rate}, weight_decay=0.0
    )
    return TrainState(
        adapters,
        optimizer,
        LearningRates("constant", optimizer, warmup_steps=0, total_steps=steps),
        device=CPU,
        dtype=torch.float32,
        **settings,
    )


def gradients(model, adapters, training_data, compute_mode=ComputeMode(torch.float32)):
    """The gradients of one step and its loss."""
    for parameter in adapters.parameters():
        parameter.grad = None
    with adapters.attached():
        loss = loop._backward(
            model, training_data, 0, compute_mode, grad_scaler(CPU, torch.float32)
        )
    return loss, [
        torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for each in adapters.parameters()
    ]


def test_every_epoch_shows_each_picture_as_often_as_its_repeats():
    schedule = loop.Schedule(
        total_steps=8, steps_per_epoch=4, batch_size=2, accumulation=1, repeats=(1, 2, 3, 1), seed=3
    )
    epochs = [
        [
            number
            for step in steps
            for batch in schedule.batches_of(step, encoded_pictures())
            for number in batch
        ]
        for steps in (range(4), range(4, 8))
    ]
    assert Counter(epochs[0]) == Counter(epochs[1]) == {0: 1, 1: 2, 2: 3, 3: 1}
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_step_alone():
    schedule = loop.Schedule(100, 2, 2, 1, (1,) * 4, 3)
    pictures = encoded_pictures()
    assert [schedule.batches_of(step, pictures) for step in (7, 3)] == [
        schedule.batches_of(step, pictures) for step in (7, 3)
    ]


def test_accumulated_gradient_is_the_mean_of_its_batches(host):
    pictures, model = encoded_pictures(), host.model
    adapters = adapters_of(model)
    schedule = loop.Schedule(1, 1, 2, 2, (1,) * 4, 0)
    _, together = gradients(model, adapters, lesson_of(pictures, schedule))
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
def test_portions_of_a_batch_give_its_gradient(host, text_encoder):
    adapters = adapters_of(host.model, text_encoder=text_encoder)
    training_data = lesson_of(
        encoded_pictures(), loop.Schedule(1, 1, 4, 1, (1,) * 4, 0), trained=text_encoder
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
def test_portions_are_told_as_much_as_the_whole_batch(host, trained):
    """The first portion has the longest caption, the second none of its length."""
    adapters = adapters_of(host.model, text_encoder=trained)
    pictures = [
        dataclasses.replace(picture, caption=caption, conditioning=None)
        for picture, caption in zip(encoded_pictures(), LENGTHS)
    ]
    training_data = lesson_of(
        pictures,
        loop.Schedule(1, 1, 4, 1, (1,) * 4, 0),
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
    adapters, schedule = adapters_of(host.model), loop.Schedule(1, 1, 2, 1, (1,) * 2, 0)
    loss, plain = gradients(host.model, adapters, lesson_of(encoded_pictures(2), schedule))
    half, weighted = gradients(
        host.model,
        adapters,
        lesson_of(encoded_pictures(2, weight=0.5, regularisation=True), schedule),
    )
    nothing, masked = gradients(
        host.model,
        adapters,
        lesson_of(encoded_pictures(2, masks=torch.zeros(1, 1, 8, 8)), schedule),
    )
    assert half == pytest.approx(loss / 2) and all(
        torch.allclose(mine, theirs / 2, atol=1e-9) for mine, theirs in zip(weighted, plain)
    )
    assert nothing == 0 and not any(gradient.any() for gradient in masked)


def test_captions_that_vary_are_encoded_anew_and_drawn_from_the_number_alone(host):
    texts = Texts(CaptionAugmentation(shuffle=True))
    batch = assemble(encoded_pictures(4, caption="a, b, c, d, e"), [0, 1, 2, 3], seed=1, number=5)
    captions = texts.draw(batch, seed=1, number=5)
    assert (
        captions
        == Texts(CaptionAugmentation(shuffle=True)).draw(batch, seed=1, number=5)
        != texts.draw(batch, seed=1, number=6)
        and len(set(captions)) > 1
    )
    told = texts.conditioning(host.model, batch, captions, slice(1, 3), torch.float32)
    assert (
        torch.equal(told.hidden_states, host.model.encode_captions(captions[1:3]).hidden_states)
        and not told.hidden_states.requires_grad
    )


def test_captions_that_do_not_vary_are_those_encoded_before(host):
    batch = assemble(encoded_pictures(), [0, 1, 2, 3], seed=1, number=5)
    told = Texts(PLAIN).conditioning(host.model, batch, batch.captions, slice(1, 3), torch.float32)
    assert torch.equal(told.hidden_states, batch.conditioning.hidden_states[1:3])


def test_text_encoder_learns_through_its_captions(host):
    adapters = adapters_of(host.model, text_encoder=True)
    train_state, training_data = (
        learner_of(adapters, steps=3),
        lesson_of(encoded_pictures(), loop.Schedule(3, 1, 4, 1, (1,) * 4, 0), trained=True),
    )
    before = {path: factors["lora_up.weight"] for path, factors in adapters.weights().items()}
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).opened() as patches:
        loop.run(patches, train_state, training_data)
    after = {path: factors["lora_up.weight"] for path, factors in adapters.weights().items()}
    assert all(not torch.equal(before[path], after[path]) for path in before) and {
        path.partition(".")[0] for path in after
    } == {"unet", "te1"}


def test_gradient_checkpointing_changes_nothing_with_dropout(host):
    adapters = adapters_of(
        host.model, text_encoder=True, dropout=0.5, rank_dropout=0.3, module_dropout=0.3
    )
    train_state = learner_of(adapters)
    training_data = lesson_of(
        encoded_pictures(), loop.Schedule(1, 1, 4, 1, (1,) * 4, 0), trained=True
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).opened() as patches:
        loop.run(patches, train_state, training_data)  # up-weights are zero no more
    plain = gradients(host.model, adapters, training_data)
    with ModelPatches(
        host.model, adapters, ComputeMode(torch.float32, gradient_checkpointing=True)
    ).opened():
        again = gradients(host.model, adapters, training_data)
    assert plain[0] == again[0] and all(
        torch.allclose(mine, theirs, atol=1e-8) for mine, theirs in zip(plain[1], again[1])
    )


# --- Pictures that are only measured --------------------------------------------------------------


def test_kept_out_pictures_are_measured_but_not_learned_from(host):
    pictures, told = encoded_pictures(), []
    schedule = loop.Schedule(6, 2, 2, 1, (1, 1, 1, 0), 0)
    assert all(3 not in batch for step in range(6) for batch in schedule.batches_of(step, pictures))
    adapters = adapters_of(host.model)
    train_state, training_data = (
        learner_of(adapters, steps=6),
        lesson_of(pictures, schedule, validation_indices=(3,), validate_every=4),
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).opened() as patches:
        loop.run(patches, train_state, training_data, on_step=told.append)
    assert [done.step for done in told if done.validation_loss is not None] == [4, 6]


def test_measuring_repeats_itself_without_dropout_and_changes_nothing(host):
    adapters = adapters_of(host.model, dropout=0.5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    training_data = lesson_of(
        encoded_pictures(), loop.Schedule(1, 1, 2, 1, (1,) * 3 + (0,), 0), validation_indices=(3,)
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).opened() as patches:
        state = torch.get_rng_state()
        one, two = loop.validate(patches, training_data), loop.validate(patches, training_data)
        assert one == two and torch.equal(state, torch.get_rng_state())
    expected, picture = [], training_data.encoded[3]
    for place in range(4):
        timesteps, noise = (
            torch.tensor([125 + 250 * place]),
            torch.randn(1, 4, 8, 8, generator=generator(0, f"validation {place}", 3)),
        )
        quiet = adapters_of(host.model)
        quiet.load(adapters.weights())
        with torch.no_grad(), quiet.attached():
            predicted = host.model.predict(
                diffusion.add_noise(picture.latents, noise, timesteps, host.model.alphas_cumprod),
                timesteps,
                picture.conditioning,
            )
        expected.append(((predicted - noise) ** 2).mean().item())
    assert one == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_measuring_is_broken_off_by_whoever_stops(host):
    training_data = lesson_of(
        encoded_pictures(), loop.Schedule(1, 1, 2, 1, (1, 1, 0, 0), 0), validation_indices=(2, 3)
    )
    adapters, answers = adapters_of(host.model), iter([True, False])
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).opened() as patches:
        assert (
            loop.validate(patches, training_data, lambda: next(answers)) is None
            and loop.validate(patches, training_data) > 0
        )


def test_a_measure_that_is_no_number_is_left_out_and_said(host, monkeypatch):
    adapters, said, told = adapters_of(host.model), [], []
    training_data = lesson_of(
        encoded_pictures(), loop.Schedule(2, 1, 2, 1, (1, 1, 1, 0), 0), validation_indices=(3,)
    )
    monkeypatch.setattr(loop, "validate", lambda *arguments: float("nan"))
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).opened() as patches:
        loop.run(
            patches,
            learner_of(adapters, steps=2),
            training_data,
            on_step=told.append,
            remark=said.append,
        )
    assert [done.validation_loss for done in told] == [
        None,
        None,
    ] and "not a finite number any more (first at step 1)" in said[0]


def test_measured_timesteps_are_among_those_that_are_trained(host, monkeypatch):
    seen, predict = [], host.model.predict
    monkeypatch.setattr(
        host.model,
        "predict",
        lambda noisy, timesteps, told: (
            seen.extend(timesteps.tolist()),
            predict(noisy, timesteps, told),
        )[1],
    )
    training_data = lesson_of(
        encoded_pictures(),
        loop.Schedule(1, 1, 2, 1, (1, 1, 1, 0), 0),
        Objective(min_timestep=100, max_timestep=300),
        validation_indices=(3,),
    )
    with ModelPatches(
        host.model, adapters_of(host.model), ComputeMode(torch.float32)
    ).opened() as patches:
        loop.validate(patches, training_data)
    assert seen == [125, 175, 225, 275]


def test_largest_batch_is_what_a_bucket_can_fill():
    pictures = encoded_pictures(3) + encoded_pictures(1, bucket=Bucket(64, 128))
    assert lesson_of(pictures, loop.Schedule(1, 1, 256, 1, (1, 2, 0, 2), 0)).largest_batch() == 3
    assert lesson_of(pictures, loop.Schedule(1, 1, 2, 1, (1, 2, 0, 2), 0)).largest_batch() == 2


def test_each_epoch_is_measured_where_no_number_of_steps_is_given():
    training_data = lesson_of(
        encoded_pictures(), loop.Schedule(10, 3, 1, 1, (1, 1, 1, 0), 0), validation_indices=(3,)
    )
    assert [step for step in range(1, 11) if training_data.is_validated_after(step)] == [
        3,
        6,
        9,
        10,
    ]


def test_measuring_with_sixteen_bit_weights_encodes_as_training_does(host):
    adapters = adapters_of(host.model, text_encoder=True)
    host.model.parts().bfloat16()
    training_data = lesson_of(
        encoded_pictures(),
        loop.Schedule(1, 1, 2, 1, (1, 1, 1, 0), 0),
        trained=True,
        validation_indices=(3,),
    )
    with ModelPatches(host.model, adapters, ComputeMode(torch.bfloat16)).opened() as patches:
        assert loop.validate(patches, training_data) > 0
