"""The loop: takes optimizer steps until they are done or it is told to end, and climbs down a
ladder when memory or numbers fail a step.

Knows nothing of files, jobs or hosts. What happens between two steps is the caller's.
"""

import dataclasses
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable

import torch

from ..base.contracts import BaseModel
from ..base.errors import NotFinite, OutOfMemory
from ..base.rng import generator
from ..dataset.buckets import Bucket, epoch_batches
from . import diffusion, precision
from .compute_mode import (
    ComputeMode,
    describe_out_of_memory,
    is_out_of_memory,
    with_less_memory,
    with_safer_numbers,
)
from .conditioning import Texts
from .encoded_dataset import Batch, Encoded, assemble
from .model_patches import ModelPatches
from .objective import Objective, Task
from .optimizers import effective_rate
from .train_state import TrainState

log = logging.getLogger(__name__)
AVERAGED_OVER_STEPS, MOST_SKIPPED, MEASURED_TIMESTEPS = 50, 20, 4


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is and in what portions. `repeats` holds one number for each picture, 0 for
    those that are only measured.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    accumulation: int
    repeats: tuple[int, ...]
    seed: int

    def batches_of(self, step: int, encoded: list[Encoded]) -> list[list[int]]:
        """Return the batches of picture numbers that make up a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        batches = _epoch(
            tuple(item.bucket for item in encoded), self.repeats, self.batch_size, self.seed, epoch
        )
        return batches[within * self.accumulation : (within + 1) * self.accumulation]


@functools.lru_cache(maxsize=2)
def _epoch(
    buckets: tuple[Bucket, ...], repeats: tuple[int, ...], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    return epoch_batches(
        list(buckets), list(repeats), batch_size=batch_size, seed=seed, epoch=epoch
    )


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What is learned from, in which order, and how a prediction is judged. `validation_indices`:
    the numbers of the pictures that are kept out of training, whose loss is taken every
    `validate_every` steps and at the end.
    """

    encoded: list[Encoded]
    schedule: Schedule
    objective: Objective
    texts: Texts
    validation_indices: tuple[int, ...] = ()
    validate_every: int = 0

    def largest_batch(self) -> int:
        """Return how many pictures go through the UNet together at most; a bucket may hold fewer
        than the batch size.
        """
        members: Counter[Bucket] = Counter()
        for item, repeats in zip(self.encoded, self.schedule.repeats, strict=True):
            members[item.bucket] += repeats
        return min(self.schedule.batch_size, max(members.values()))

    def is_validated_after(self, step: int) -> bool:
        return bool(self.validation_indices) and (
            step % (self.validate_every or self.schedule.steps_per_epoch) == 0
            or step == self.schedule.total_steps
        )


@dataclasses.dataclass(frozen=True)
class FinishedStep:
    """A finished optimizer step, counted from 1, and how long it computed, without measuring.
    `validation_loss` is None where nothing was measured.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    validation_loss: float | None = None


def run(  # noqa: PLR0913
    patches: ModelPatches,
    train_state: TrainState,
    training_data: TrainingData,
    *,
    max_grad_norm: float = 1.0,
    may_adapt: bool = True,
    on_step: Callable[[FinishedStep], None] = lambda done: None,
    between: Callable[[], bool] = lambda: True,
    roll_back: Callable[[], None] | None = None,
    remark: Callable[[str], None] = log.warning,
) -> None:
    """Take the steps that are left. `between()` runs before each of them, when no graph is alive;
    False ends the run.

    When memory runs out the step is taken again with the next rung of the ladder, if `may_adapt`;
    when a number is not finite, once more in safer precision. `roll_back` sets the train state back
    to its last state on disk, for when its weights were spoiled; `remark` hears of it all. Raises
    `OutOfMemory` or `NotFinite` at the bottom; the train state then still holds a finite state,
    unless it could not be rolled back.
    """

    def recover(trouble: NotFinite | OutOfMemory) -> None:
        _recover(patches, train_state, training_data, trouble, may_adapt, roll_back, remark)

    while train_state.step < training_data.schedule.total_steps:
        trouble = None
        try:
            if not between():
                break
            began = time.monotonic()
            loss, rate = take_step(
                patches.base_model,
                train_state,
                training_data,
                patches.compute_mode,
                max_grad_norm=max_grad_norm,
            )
        except NotFinite as error:
            trouble = error
        except (MemoryError, RuntimeError) as error:
            trouble = _out_of_memory(error, train_state.step + 1)
        if trouble:  # out here the failed step's tensors are gone
            recover(trouble)
            continue
        seconds = time.monotonic() - began
        train_state.loss_average = average(train_state.loss_average, loss, train_state.step)
        on_step(
            FinishedStep(
                train_state.step,
                loss,
                rate,
                seconds,
                _validated(patches, train_state, training_data, recover, between, remark),
            )
        )


def _out_of_memory(error: Exception, step: int) -> OutOfMemory:
    """Return what an error at a step means if memory ran out; raises it if it is another."""
    if not is_out_of_memory(error):
        raise error
    return OutOfMemory(step, describe_out_of_memory(error))


def _validated(
    patches: ModelPatches,
    train_state: TrainState,
    training_data: TrainingData,
    recover: Callable[[OutOfMemory], None],
    between: Callable[[], bool],
    remark: Callable[[str], None],
) -> float | None:
    """Measure what is kept out of training, if it is time; memory may run out here too."""
    while training_data.is_validated_after(train_state.step):
        try:
            loss = validate(patches, training_data, between)
            if loss is None or math.isfinite(loss):
                return loss
            remark(
                "The validation loss is not a finite number any more (first at step"
                f" {train_state.step}); it is left out of the curve."
            )
            return None
        except (MemoryError, RuntimeError) as error:
            trouble = _out_of_memory(error, train_state.step)
        recover(trouble)
    return None


def average(before: float | None, loss: float, step: int) -> float:
    """Smooth the loss over the last steps; `step` counts from 1."""
    return loss if before is None else before + (loss - before) / min(step, AVERAGED_OVER_STEPS)


def take_step(
    base_model: BaseModel,
    train_state: TrainState,
    training_data: TrainingData,
    compute_mode: ComputeMode,
    *,
    max_grad_norm: float = 1.0,
) -> tuple[float, float]:
    """Take one optimizer step and return its loss and learning rate. Raises `NotFinite` before a
    weight is changed, and whatever torch raises.
    """
    parameters, scaler = train_state.adapters.parameters(), train_state.scaler
    train_state.rates.set(train_state.step)
    for _ in range(MOST_SKIPPED if scaler.is_enabled() else 1):
        loss = _backward(base_model, training_data, train_state.step, compute_mode, scaler)
        if not math.isfinite(loss):
            raise _not_finite(train_state, training_data, "loss", loss)
        scaler.unscale_(train_state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf).item()
        if math.isfinite(norm):
            break
        if scaler.is_enabled():  # float16's range was too small: once more with a smaller scale
            scaler.step(train_state.optimizer)
            scaler.update()
        train_state.optimizer.zero_grad(set_to_none=True)
    else:
        raise _not_finite(train_state, training_data, "loss's gradient", norm)
    train_state.in_optimizer_step = True
    scaler.step(train_state.optimizer)
    train_state.step += 1
    train_state.after_step()
    train_state.in_optimizer_step = False
    scaler.update()
    train_state.optimizer.zero_grad(set_to_none=True)
    return loss, effective_rate(train_state.optimizer)


def _recover(
    patches: ModelPatches,
    train_state: TrainState,
    training_data: TrainingData,
    trouble: NotFinite | OutOfMemory,
    may_adapt: bool,
    roll_back: Callable[[], None] | None,
    remark: Callable[[str], None],
) -> None:
    """Give back what the step took, go back to whole weights, and change how steps are computed;
    raises the trouble when nothing is left to try.
    """
    train_state.optimizer.zero_grad(set_to_none=True)
    precision.free_memory(patches.base_model.device)
    spoiled = train_state.in_optimizer_step or not train_state.adapters.are_finite()
    if spoiled:
        if roll_back is None:
            raise trouble
        roll_back()
    if isinstance(trouble, OutOfMemory):
        rung = (
            with_less_memory(
                patches.compute_mode,
                training_data.largest_batch(),
                needs_encoders=training_data.texts.change,
            )
            if may_adapt
            else None
        )
    else:
        rung = with_safer_numbers(
            patches.compute_mode,
            patches.base_model.dtype,
            has_bf16=precision.has_bf16(patches.base_model.device),
        )
    if rung is None:
        raise trouble
    compute_mode, how = rung
    since = f"from step {train_state.step} " if spoiled else ""
    remark(f"{trouble} Going on {since}with {how}.")
    patches.change(compute_mode)
    if isinstance(trouble, NotFinite):
        train_state.compute_in(compute_mode.dtype)


def _not_finite(
    train_state: TrainState, training_data: TrainingData, what: str, value: float
) -> NotFinite:
    numbers = [
        number
        for batch in training_data.schedule.batches_of(train_state.step, training_data.encoded)
        for number in batch
    ]
    return NotFinite(train_state.step + 1, what, value, sorted(set(numbers)))


def _backward(
    base_model: BaseModel, training_data: TrainingData, step: int, compute_mode: ComputeMode, scaler
) -> float:
    """Add up the gradients of one step's batches and return their mean loss."""
    schedule, seed = training_data.schedule, training_data.schedule.seed
    batches, total = schedule.batches_of(step, training_data.encoded), 0.0
    for part, numbers in enumerate(batches):
        number = step * schedule.accumulation + part
        batch = assemble(training_data.encoded, numbers, seed=seed, number=number)
        captions, task = (
            training_data.texts.draw(batch, seed=seed, number=number),
            training_data.objective.draw(batch.latents.shape, seed=seed, number=number),
        )
        micro_batch_size = compute_mode.micro_batch_size or len(numbers)
        for start in range(
            0, len(numbers), micro_batch_size
        ):  # all but dropouts was drawn for the whole batch, so portions change nothing
            portion = slice(start, start + micro_batch_size)
            with torch.random.fork_rng(
                devices=[base_model.device] if base_model.device.type == "cuda" else []
            ):
                torch.manual_seed(
                    generator(
                        seed, f"dropout {start}" if start else "dropout", number
                    ).initial_seed()
                )
                loss = (
                    _losses(
                        base_model,
                        training_data,
                        batch,
                        captions,
                        task,
                        portion,
                        compute_mode.dtype,
                    ).sum()
                    / len(numbers)
                    / len(batches)
                )
                scaler.scale(loss).backward()
            total += loss.item()
    return total


def _losses(
    base_model: BaseModel,
    training_data: TrainingData,
    batch: Batch,
    captions: list[str],
    task: Task,
    portion: slice,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The story of a loss: noise the latents, predict, compare. Returns one for each picture of the
    portion, weighted.
    """
    device, schedule, objective, task = (
        base_model.device,
        base_model.alphas_cumprod,
        training_data.objective,
        task[portion],
    )
    weights = (
        objective.weights(task.timesteps, schedule, base_model.prediction_type)
        * batch.weights[portion]
    ).to(device)
    borders = objective.borders(task.timesteps, schedule)
    masks = None if batch.masks is None else batch.masks[portion].to(device)
    latents, timesteps = batch.latents[portion].to(device), task.timesteps.to(device)
    noisy = diffusion.add_noise(latents, task.perturbed_noise.to(device), timesteps, schedule)
    target = diffusion.target(
        latents, task.noise.to(device), timesteps, schedule, base_model.prediction_type
    )
    with precision.autocast(device, dtype):
        predicted = base_model.predict(
            noisy,
            timesteps,
            training_data.texts.conditioning(base_model, batch, captions, portion, dtype),
        )
    return objective.losses(predicted, target, borders=borders, masks=masks) * weights


# --- Pictures that are only measured --------------------------------------------------------------


def validate(
    patches: ModelPatches, training_data: TrainingData, between: Callable[[], bool] = lambda: True
) -> float | None:
    """Return the mean squared error of the pictures kept out of training, at the same noise and
    timesteps each time, and without dropout.

    `between()` runs before each picture, and may give the model to others; when it says False,
    nothing is returned.
    """
    total = 0.0
    for number in training_data.validation_indices:
        if not between():
            return None
        with torch.no_grad(), patches.adapters.without_dropout():
            total += _measured(
                patches.base_model, training_data, number, patches.compute_mode.dtype
            )
    return total / len(training_data.validation_indices)


def _measured(
    base_model: BaseModel, training_data: TrainingData, number: int, dtype: torch.dtype
) -> float:
    """Return one picture's mean squared error, within its mask, at timesteps spread evenly over
    those that are trained.
    """
    device, schedule, seed = (
        base_model.device,
        base_model.alphas_cumprod,
        training_data.schedule.seed,
    )
    batch = assemble(training_data.encoded, [number], seed=seed, number=-1 - number)
    latents, masks = (
        batch.latents.to(device),
        (None if batch.masks is None else batch.masks.to(device)),
    )
    lowest, below = training_data.objective.min_timestep, training_data.objective.max_timestep
    squares = []
    with precision.autocast(device, dtype):
        conditioning = training_data.texts.conditioning(
            base_model, batch, batch.captions, slice(0, 1), dtype
        )
    for place in range(MEASURED_TIMESTEPS):
        timesteps = torch.tensor(
            [lowest + int((place + 0.5) / MEASURED_TIMESTEPS * (below - lowest))], device=device
        )
        noise = torch.randn(
            latents.shape, generator=generator(seed, f"validation {place}", number)
        ).to(device)
        with precision.autocast(device, dtype):
            predicted = base_model.predict(
                diffusion.add_noise(latents, noise, timesteps, schedule), timesteps, conditioning
            )
        target = diffusion.target(latents, noise, timesteps, schedule, base_model.prediction_type)
        squares.append(Objective().losses(predicted, target, masks=masks).item())
    return sum(squares) / len(squares)
