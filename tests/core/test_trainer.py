"""Order of batches, and gradients that add up."""
from collections import Counter

import torch

from lora_trainer.core import trainer
from lora_trainer.core.adapters import Adapters, plan_shapes
from lora_trainer.core.cache import Encoded, assemble
from lora_trainer.core.contracts import Conditioning
from lora_trainer.core.dataset import Bucket
from lora_trainer.core.effort import Effort
from lora_trainer.core.precision import grad_scaler


def encoded_pictures(count=4):
    draws = torch.Generator().manual_seed(0)
    return [Encoded(torch.randn(1, 4, 8, 8, generator=draws), Conditioning(torch.randn(1, 77, 12, generator=draws)), Bucket(64, 64)) for _ in range(count)]


def test_every_epoch_shows_each_picture_as_often_as_its_repeats():
    schedule = trainer.Schedule(total_steps=8, steps_per_epoch=4, batch_size=2, accumulation=1, repeats=(1, 2, 3, 1), seed=3)
    epochs = [[number for step in steps for batch in schedule.batches_of(step, encoded_pictures()) for number in batch] for steps in (range(4), range(4, 8))]
    assert Counter(epochs[0]) == Counter(epochs[1]) == {0: 1, 1: 2, 2: 3, 3: 1}
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_step_alone():
    schedule = trainer.Schedule(100, 2, 2, 1, (1,) * 4, 3)
    pictures = encoded_pictures()
    assert [schedule.batches_of(step, pictures) for step in (7, 3)] == [schedule.batches_of(step, pictures) for step in (7, 3)]


def test_accumulated_gradient_is_the_mean_of_its_batches(host):
    pictures, model = encoded_pictures(), host.model
    model.unet.requires_grad_(False)
    adapters = Adapters.create(model.unet, plan_shapes(model.unet, targets="attention", rank=4, alpha=4))
    schedule = trainer.Schedule(1, 1, 2, 2, (1,) * 4, 0)
    with adapters.attached():
        trainer._backward(model, pictures, schedule, 0, Effort(torch.float32), grad_scaler(model.device, torch.float32))
        together = [parameter.grad.clone() for parameter in adapters.parameters()]
        expected = [torch.zeros_like(gradient) for gradient in together]
        for part, numbers in enumerate(schedule.batches_of(0, pictures)):
            for parameter in adapters.parameters():
                parameter.grad = None
            latents, conditioning = assemble(pictures, numbers, seed=0, number=part)
            noise = torch.randn(latents.shape, generator=trainer.generator(0, "noise", part))
            timesteps = torch.randint(0, 1000, (len(latents),), generator=trainer.generator(0, "timesteps", part))
            trainer._loss(model, latents, noise, timesteps, conditioning, torch.float32, seed=0, number=part).backward()
            for total, parameter in zip(expected, adapters.parameters()):
                total += parameter.grad / 2
    assert all(torch.allclose(mine, theirs, atol=1e-7) for mine, theirs in zip(together, expected)) and any(gradient.any() for gradient in together)


def test_crop_and_mirror_come_from_the_number_alone():
    wide = [Encoded(torch.arange(2 * 4 * 8 * 12.0).view(2, 4, 8, 12), Conditioning(torch.zeros(1, 77, 12)), Bucket(64, 64))]
    first, again = (assemble(wide, [0], seed=1, number=5)[0] for _ in range(2))
    assert torch.equal(first, again) and first.shape == (1, 4, 8, 8)
    assert len({assemble(wide, [0], seed=1, number=number)[0].sum().item() for number in range(20)}) > 4
