"""The loop: takes optimizer steps until they are done or it is told to end, and climbs down a ladder when memory or numbers fail a step.

Knows nothing of files, jobs or hosts. What happens between two steps is the caller's.
"""
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable

import torch

from . import diffusion, precision
from .cache import Encoded, assemble
from .contracts import BaseModel, Conditioning
from .dataset import Bucket, epoch_batches, generator
from .effort import Effort, describe_out_of_memory, is_out_of_memory, with_less_memory, with_safer_numbers
from .errors import NotFinite, OutOfMemory
from .learner import Learner
from .session import Session

log = logging.getLogger(__name__)
AVERAGED_OVER_STEPS, MOST_SKIPPED = 50, 20


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
class StepDone:
    """A finished optimizer step, counted from 1, and how long it computed."""
    step: int
    loss: float
    learning_rate: float
    seconds: float


def run(session: Session, learner: Learner, encoded: list[Encoded], schedule: Schedule, *, max_grad_norm: float = 1.0, may_adapt: bool = True,
        on_step: Callable[[StepDone], None] = lambda done: None, between: Callable[[], bool] = lambda: True,
        roll_back: Callable[[], None] | None = None, remark: Callable[[str], None] = log.warning) -> None:
    """Take the steps that are left. `between()` runs before each of them, when no graph is alive; False ends the run.

    When memory runs out the step is taken again with the next rung of the ladder, if `may_adapt`; when a number is not finite, once more in
    safer precision. `roll_back` sets the learner back to its last state on disk, for when its weights were spoiled; `remark` hears of it all.
    Raises `OutOfMemory` or `NotFinite` at the bottom; the learner then still holds a finite state, unless it could not be rolled back.
    """
    while learner.step < schedule.total_steps:
        trouble = None
        try:
            if not between():
                break
            began = time.monotonic()
            loss, rate = take_step(session.base_model, learner, encoded, schedule, session.effort, max_grad_norm=max_grad_norm)
        except NotFinite as error:
            trouble = error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            trouble = OutOfMemory(learner.step + 1, describe_out_of_memory(error))
        if trouble:                                                                # out here the failed step's tensors are gone
            _recover(session, learner, schedule, trouble, may_adapt, roll_back, remark)
            continue
        learner.loss_average = average(learner.loss_average, loss, learner.step)
        on_step(StepDone(learner.step, loss, rate, time.monotonic() - began))


def average(before: float | None, loss: float, step: int) -> float:
    """Smooth the loss over the last steps; `step` counts from 1."""
    return loss if before is None else before + (loss - before) / min(step, AVERAGED_OVER_STEPS)


def take_step(base_model: BaseModel, learner: Learner, encoded: list[Encoded], schedule: Schedule, effort: Effort, *, max_grad_norm: float = 1.0) -> tuple[float, float]:
    """Take one optimizer step and return its loss and learning rate. Raises `NotFinite` before a weight is changed, and whatever torch raises."""
    parameters, scaler = learner.adapters.parameters(), learner.scaler
    rate = learner.rates.set(learner.step)
    for _ in range(MOST_SKIPPED if scaler.is_enabled() else 1):
        loss = _backward(base_model, encoded, schedule, learner.step, effort, scaler)
        if not math.isfinite(loss):
            raise _not_finite(learner, schedule, encoded, "loss", loss)
        scaler.unscale_(learner.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf).item()
        if math.isfinite(norm):
            break
        if scaler.is_enabled():                                                    # float16's range was too small: once more with a smaller scale
            scaler.step(learner.optimizer)
            scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
    else:
        raise _not_finite(learner, schedule, encoded, "loss's gradient", norm)
    learner.half_done = True
    scaler.step(learner.optimizer)
    learner.half_done = False
    scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.step += 1
    return loss, rate


def _recover(session: Session, learner: Learner, schedule: Schedule, trouble: NotFinite | OutOfMemory, may_adapt: bool,
             roll_back: Callable[[], None] | None, remark: Callable[[str], None]) -> None:
    """Give back what the step took, go back to whole weights, and change how steps are computed; raises the trouble when nothing is left to try."""
    learner.optimizer.zero_grad(set_to_none=True)
    precision.free_memory(session.base_model.device)
    spoiled = learner.half_done or not learner.adapters.are_finite()
    if spoiled:
        if roll_back is None:
            raise trouble
        roll_back()
    if isinstance(trouble, OutOfMemory):
        rung = with_less_memory(session.effort, schedule.batch_size) if may_adapt else None
    else:
        rung = with_safer_numbers(session.effort, session.base_model.dtype, has_bf16=precision.has_bf16(session.base_model.device))
    if rung is None:
        raise trouble
    effort, how = rung
    remark(f"{trouble} Going on {'from step ' + str(learner.step) + ' ' if spoiled else ''}with {how}.")
    session.change(effort)
    if isinstance(trouble, NotFinite):
        learner.compute_in(effort.dtype)


def _not_finite(learner: Learner, schedule: Schedule, encoded: list[Encoded], what: str, value: float) -> NotFinite:
    numbers = [number for batch in schedule.batches_of(learner.step, encoded) for number in batch]
    return NotFinite(learner.step + 1, what, value, sorted(set(numbers)))


def _backward(base_model: BaseModel, encoded: list[Encoded], schedule: Schedule, step: int, effort: Effort, scaler) -> float:
    """Add up the gradients of one step's batches and return their mean loss."""
    batches = schedule.batches_of(step, encoded)
    total = 0.0
    for part, numbers in enumerate(batches):
        number = step * schedule.accumulation + part
        latents, conditioning = assemble(encoded, numbers, seed=schedule.seed, number=number)
        noise = torch.randn(latents.shape, generator=generator(schedule.seed, "noise", number))
        timesteps = torch.randint(0, len(base_model.alphas_cumprod), (len(latents),), generator=generator(schedule.seed, "timesteps", number))
        at_once = effort.at_once or len(numbers)
        for start in range(0, len(numbers), at_once):                              # everything was drawn for the whole batch, so portions change nothing
            portion = slice(start, start + at_once)
            loss = _loss(base_model, latents[portion], noise[portion], timesteps[portion], conditioning[portion], effort.dtype, seed=schedule.seed,
                         number=number)
            share = len(timesteps[portion]) / len(numbers) / len(batches)
            scaler.scale(loss * share).backward()
            total += loss.item() * share
    return total


def _loss(base_model: BaseModel, latents, noise, timesteps, conditioning: Conditioning, dtype: torch.dtype, *, seed: int, number: int) -> torch.Tensor:
    """The story of a loss: noise the latents, predict, compare. Dropout's draws depend on (seed, number) alone."""
    device = base_model.device
    latents, noise, timesteps, conditioning = latents.to(device), noise.to(device), timesteps.to(device), conditioning.to(device)
    noisy = diffusion.add_noise(latents, noise, timesteps, base_model.alphas_cumprod)
    wanted = diffusion.target(latents, noise, timesteps, base_model.alphas_cumprod, base_model.prediction_type)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator(seed, "dropout", number).initial_seed())
        with precision.autocast(device, dtype):
            predicted = base_model.predict(noisy, timesteps, conditioning)
    return diffusion.loss(predicted, wanted)
