"""The validation loss: what the model gets wrong of the pictures that are kept out of training."""

import math
from collections.abc import Callable

import torch

from ..base.autocast import autocast
from ..base.contracts import BaseModel
from ..base.rng import generator
from . import diffusion
from .encoded_dataset import assemble
from .model_patches import ModelPatches
from .objective import Objective
from .training_data import TrainingData

TIMESTEPS_PER_PICTURE = 4


def validate_if_due(
    patches: ModelPatches,
    training_data: TrainingData,
    step: int,
    before_picture: Callable[[], bool],
    warn: Callable[[str], None],
) -> float | None:
    """Return the validation loss after `step`, counted from 1; None when none is due, when
    `before_picture` broke it off, or when it is not finite, of which `warn` is told.
    """
    if not training_data.is_validated_after(step):
        return None
    loss = validate(patches, training_data, before_picture)
    if loss is None or math.isfinite(loss):
        return loss
    warn("The validation loss is not a finite number any more; it is left out of the curve.")
    return None


def validate(
    patches: ModelPatches,
    training_data: TrainingData,
    before_picture: Callable[[], bool] = lambda: True,
) -> float | None:
    """Return the mean squared error of the pictures kept out of training.

    Noise and timesteps are the same each time, and nothing is dropped out. `before_picture()` runs
    before each picture and may lend the model to others; where it returns False, so does this None.
    """
    total = 0.0
    for index in training_data.validation_indices:
        if not before_picture():
            return None
        with torch.no_grad(), patches.adapters.without_dropout():
            total += _picture_loss(
                patches.base_model, training_data, index, patches.compute_mode.dtype
            )
    return total / len(training_data.validation_indices)


def _picture_loss(
    base_model: BaseModel, training_data: TrainingData, index: int, dtype: torch.dtype
) -> float:
    """Return one picture's mean squared error, within its mask, at timesteps spread evenly over
    those that are trained.
    """
    device, alphas_cumprod = base_model.device, base_model.alphas_cumprod
    seed = training_data.schedule.seed
    batch = assemble(training_data.encoded, [index], seed=seed, number=-1 - index)
    latents = batch.latents.to(device)
    masks = None if batch.masks is None else batch.masks.to(device)
    with autocast(device, dtype):
        conditioning = training_data.conditioner.conditioning(
            base_model, batch, batch.captions, slice(0, 1), dtype
        )
    losses = []
    for position in range(TIMESTEPS_PER_PICTURE):
        timesteps = _timesteps(training_data.objective, position).to(device)
        rng = generator(seed, f"validation {position}", index)
        noise = torch.randn(latents.shape, generator=rng).to(device)
        noisy_latents = diffusion.add_noise(latents, noise, timesteps, alphas_cumprod)
        with autocast(device, dtype):
            predicted = base_model.predict(noisy_latents, timesteps, conditioning)
        target = diffusion.target(
            latents, noise, timesteps, alphas_cumprod, base_model.prediction_type
        )
        losses.append(Objective().losses(predicted, target, masks=masks).item())
    return sum(losses) / len(losses)


def _timesteps(objective: Objective, position: int) -> torch.Tensor:
    """Return the timestep `(1,)`, int64, in the middle of the part at `position` of those that are
    trained.
    """
    lowest, below = objective.min_timestep, objective.max_timestep
    fraction = (position + 0.5) / TIMESTEPS_PER_PICTURE
    return torch.tensor([lowest + int(fraction * (below - lowest))])
