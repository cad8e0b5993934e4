"""The parts of one optimizer step: forward and backward over its batches, clipping, and the
optimizer itself. `loop.py` puts them in order.
"""

import contextlib
import math
from collections.abc import Iterator

import torch

from ..base.autocast import autocast
from ..base.contracts import BaseModel
from ..base.errors import NotFinite
from ..base.rng import generator
from . import diffusion
from .compute_mode import ComputeMode
from .learning_rates import effective_rate
from .train_state import TrainState
from .training_data import DrawnBatch, TrainingData

MAX_SKIPPED_STEPS = 20  # how often float16's loss scale is lowered in a row


def forward_backward(
    base_model: BaseModel,
    training_data: TrainingData,
    step: int,
    compute_mode: ComputeMode,
    scaler: "torch.amp.GradScaler",
) -> float:
    """Add up the gradients of a step's batches, `step` counted from 0, and return their mean loss.
    Raises `NotFinite` for a loss that is not finite.
    """
    total = 0.0
    for drawn in training_data.draw_batches(step):
        # Everything but dropout was drawn for the whole batch, so micro-batches change nothing.
        for part in drawn.micro_batches(compute_mode.micro_batch_size):
            with _seeded_dropout(base_model.device, drawn, part.start):
                losses = compute_losses(base_model, training_data, drawn, part, compute_mode.dtype)
                loss = losses.sum() / len(drawn) / drawn.batches_in_step
                scaler.scale(loss).backward()
            total += loss.item()
    if not math.isfinite(total):
        raise not_finite(training_data, step, "loss", total)
    return total


def compute_losses(
    base_model: BaseModel,
    training_data: TrainingData,
    drawn: DrawnBatch,
    part: slice,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Noise the latents, predict and compare: return the weighted losses, one for each picture
    of a part of a batch, with the forward pass in `dtype`.
    """
    device, alphas_cumprod = base_model.device, base_model.alphas_cumprod
    objective, batch, noise_draw = training_data.objective, drawn.batch, drawn.noise_draw[part]
    weights = objective.weights(noise_draw.timesteps, alphas_cumprod, base_model.prediction_type)
    weights = (weights * batch.weights[part]).to(device)
    borders = objective.borders(noise_draw.timesteps, alphas_cumprod)
    masks = None if batch.masks is None else batch.masks[part].to(device)
    latents, timesteps = batch.latents[part].to(device), noise_draw.timesteps.to(device)
    perturbed_noise = noise_draw.perturbed_noise.to(device)
    noisy_latents = diffusion.add_noise(latents, perturbed_noise, timesteps, alphas_cumprod)
    target = diffusion.target(
        latents, noise_draw.noise.to(device), timesteps, alphas_cumprod, base_model.prediction_type
    )
    with autocast(device, dtype):
        conditioning = training_data.conditioner.conditioning(
            base_model, batch, drawn.captions, part, dtype
        )
        predicted = base_model.predict(noisy_latents, timesteps, conditioning)
    return objective.losses(predicted, target, borders=borders, masks=masks) * weights


def clip_gradients(train_state: TrainState, max_norm: float) -> float:
    """Unscale the gradients, clip them to `max_norm` (0: not at all) and return their norm
    before.
    """
    train_state.scaler.unscale_(train_state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(train_state.adapters.parameters(), max_norm or math.inf)
    return norm.item()


def max_attempts(train_state: TrainState) -> int:
    """Return how often a step may be computed until its gradient is finite: again only with
    float16, each time with a smaller loss scale.
    """
    return MAX_SKIPPED_STEPS if train_state.scaler.is_enabled() else 1


def skip_step(train_state: TrainState) -> None:
    """Drop gradients that are not finite; with float16, lower the loss scale."""
    if train_state.scaler.is_enabled():
        train_state.scaler.step(train_state.optimizer)  # leaves the weights alone
        train_state.scaler.update()
    train_state.optimizer.zero_grad(set_to_none=True)


def optimizer_step(train_state: TrainState) -> float:
    """Change the weights, count the step, and return the learning rate it was taken with."""
    train_state.in_optimizer_step = True
    train_state.scaler.step(train_state.optimizer)
    train_state.step += 1
    train_state.limit_norms_and_average()
    train_state.in_optimizer_step = False
    train_state.scaler.update()
    train_state.optimizer.zero_grad(set_to_none=True)
    return effective_rate(train_state.optimizer)


def not_finite(training_data: TrainingData, step: int, quantity: str, value: float) -> NotFinite:
    """Return the error for a loss or gradient of a step, counted from 0, that is not finite."""
    return NotFinite(step + 1, quantity, value, training_data.pictures_of(step))


@contextlib.contextmanager
def _seeded_dropout(device: torch.device, drawn: DrawnBatch, start: int) -> Iterator[None]:
    """Seed the global generators of the CPU and of `device`, which dropout draws from, for the
    micro-batch that begins at `start`; afterwards they are as before (not on other devices than
    CUDA's).
    """
    purpose = f"dropout {start}" if start else "dropout"
    seed = generator(drawn.seed, purpose, drawn.number).initial_seed()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type != "cpu":
            torch.manual_seed(seed)
        yield
