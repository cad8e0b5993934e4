"""The loop: takes optimizer steps until they are done or somebody says stop. Reports each step; knows nothing of files or jobs."""
import dataclasses
import functools
import math
import time
from collections.abc import Callable

import torch

from . import diffusion
from .adapters import Adapters
from .cache import Encoded, assemble
from .contracts import BaseModel, Progress
from .dataset import Bucket, epoch_batches, generator
from .errors import Refused
from .precision import autocast, grad_scaler

AVERAGED_OVER_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is and in what portions. `repeats` holds one number for each picture."""
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    accumulation: int
    repeats: tuple[int, ...]
    seed: int

    def batches_of(self, step: int, encoded: list[Encoded]) -> list[list[int]]:
        """Return the batches of picture numbers that make up a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        batches = _epoch(tuple(item.bucket for item in encoded), self.repeats, self.batch_size, self.seed, epoch)
        return batches[within * self.accumulation:(within + 1) * self.accumulation]


@functools.lru_cache(maxsize=2)
def _epoch(buckets: tuple[Bucket, ...], repeats: tuple[int, ...], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    return epoch_batches(list(buckets), list(repeats), batch_size=batch_size, seed=seed, epoch=epoch)


@dataclasses.dataclass(frozen=True)
class Outcome:
    steps: int
    loss_average: float | None
    stopped: bool
    seconds: float
    first_step_at: float | None    # time.monotonic() when the first step was done


def run(base_model: BaseModel, adapters: Adapters, encoded: list[Encoded], schedule: Schedule, *, optimizer: torch.optim.Optimizer,
        learning_rates: torch.optim.lr_scheduler.LRScheduler, dtype: torch.dtype, max_grad_norm: float = 1.0,
        on_step: Callable[[Progress], None] = lambda progress: None, after_step: Callable[[int], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False, give_way: Callable[[], None] = lambda: None) -> Outcome:
    """Train attached adapters. `after_step(step)` runs between steps, when no graph is alive, as does `give_way`.

    Raises `Refused` (code "not_finite") when a loss is not finite; the adapters then hold the last finite step's weights.
    """
    scaler, parameters = grad_scaler(base_model.device, dtype), adapters.parameters()
    started, average, first_step_at, step, stopped = time.monotonic(), None, None, 0, False
    while step < schedule.total_steps and not (stopped := should_stop()):
        rate = learning_rates.get_last_lr()[0]
        loss = _backward(base_model, encoded, schedule, step, dtype, scaler)
        if not math.isfinite(loss):
            raise Refused(_not_finite(step + 1, "loss", loss), code="not_finite")
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf).item()
        if not math.isfinite(norm) and not scaler.is_enabled():                    # a scaler skips such a step and lowers its scale
            raise Refused(_not_finite(step + 1, "loss's gradient", norm), code="not_finite")
        scaler.step(optimizer)
        scaler.update()
        learning_rates.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        first_step_at = first_step_at or time.monotonic()
        average = loss if average is None else average + (loss - average) / min(step, AVERAGED_OVER_STEPS)
        on_step(_progress(step, schedule, loss, average, rate, started, first_step_at))
        after_step(step)
        give_way()
    return Outcome(step, average, stopped, time.monotonic() - started, first_step_at)


def _backward(base_model: BaseModel, encoded: list[Encoded], schedule: Schedule, step: int, dtype: torch.dtype, scaler) -> float:
    """Add up the gradients of one step's batches and return their mean loss."""
    batches = schedule.batches_of(step, encoded)
    total = 0.0
    for part, numbers in enumerate(batches):
        number = step * schedule.accumulation + part
        latents, conditioning = assemble(encoded, numbers, seed=schedule.seed, number=number)
        noise = torch.randn(latents.shape, generator=generator(schedule.seed, "noise", number))
        timesteps = torch.randint(0, len(base_model.alphas_cumprod), (len(latents),), generator=generator(schedule.seed, "timesteps", number))
        loss = _loss(base_model, latents, noise, timesteps, conditioning, dtype, seed=schedule.seed, number=number)
        scaler.scale(loss / len(batches)).backward()
        total += loss.item() / len(batches)
    return total


def _loss(base_model: BaseModel, latents, noise, timesteps, conditioning, dtype: torch.dtype, *, seed: int, number: int) -> torch.Tensor:
    """The story of a loss: noise the latents, predict, compare. Dropout's draws depend on (seed, number) alone."""
    device = base_model.device
    latents, noise, timesteps, conditioning = latents.to(device), noise.to(device), timesteps.to(device), conditioning.to(device)
    noisy = diffusion.add_noise(latents, noise, timesteps, base_model.alphas_cumprod)
    wanted = diffusion.target(latents, noise, timesteps, base_model.alphas_cumprod, base_model.prediction_type)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator(seed, "dropout", number).initial_seed())
        with autocast(device, dtype):
            predicted = base_model.predict(noisy, timesteps, conditioning)
    return diffusion.loss(predicted, wanted)


def _progress(step: int, schedule: Schedule, loss: float, average: float, rate: float, started: float, first_step_at: float) -> Progress:
    """The first step warms caches up and would spoil the estimate, so the time of later ones counts as soon as there is any."""
    now = time.monotonic()
    each = (now - first_step_at) / (step - 1) if step > 1 else now - started
    return Progress("training", "Training", step / schedule.total_steps, step, schedule.total_steps, (step - 1) // schedule.steps_per_epoch + 1,
                    loss, average, rate, each, each * (schedule.total_steps - step))


def _not_finite(step: int, what: str, value: float) -> str:
    return (f"The {what} became {value} at step {step}, so training stopped; snapshots saved before are kept. Usually the learning rate is too high: "
            "try a tenth of it. With fp16, bf16 or fp32 can help too.")
