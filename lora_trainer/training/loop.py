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
from ..dataset.scan import Bucket, epoch_batches, generator
from . import diffusion, precision
from .compute_mode import (
    Effort,
    describe_out_of_memory,
    is_out_of_memory,
    with_less_memory,
    with_safer_numbers,
)
from .conditioning import Texts
from .encoded_dataset import Batch, Encoded, assemble
from .model_patches import Session
from .objective import Objective, Task
from .optimizers import effective_rate
from .train_state import Learner

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
class Lesson:
    """What is learned from, in which order, and how a prediction is judged. `measured`: the numbers
    of the pictures that are kept out of training, whose loss is taken every `measured_every` steps
    and at the end.
    """

    encoded: list[Encoded]
    schedule: Schedule
    objective: Objective
    texts: Texts
    measured: tuple[int, ...] = ()
    measured_every: int = 0

    def largest_batch(self) -> int:
        """Return how many pictures go through the UNet together at most; a bucket may hold fewer
        than the batch size.
        """
        members: Counter[Bucket] = Counter()
        for item, repeats in zip(self.encoded, self.schedule.repeats, strict=True):
            members[item.bucket] += repeats
        return min(self.schedule.batch_size, max(members.values()))

    def is_measured_after(self, step: int) -> bool:
        return bool(self.measured) and (
            step % (self.measured_every or self.schedule.steps_per_epoch) == 0
            or step == self.schedule.total_steps
        )


@dataclasses.dataclass(frozen=True)
class StepDone:
    """A finished optimizer step, counted from 1, and how long it computed, without measuring.
    `validation_loss` is None where nothing was measured.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    validation_loss: float | None = None


def run(  # noqa: PLR0913
    session: Session,
    learner: Learner,
    lesson: Lesson,
    *,
    max_grad_norm: float = 1.0,
    may_adapt: bool = True,
    on_step: Callable[[StepDone], None] = lambda done: None,
    between: Callable[[], bool] = lambda: True,
    roll_back: Callable[[], None] | None = None,
    remark: Callable[[str], None] = log.warning,
) -> None:
    """Take the steps that are left. `between()` runs before each of them, when no graph is alive;
    False ends the run.

    When memory runs out the step is taken again with the next rung of the ladder, if `may_adapt`;
    when a number is not finite, once more in safer precision. `roll_back` sets the learner back to
    its last state on disk, for when its weights were spoiled; `remark` hears of it all. Raises
    `OutOfMemory` or `NotFinite` at the bottom; the learner then still holds a finite state, unless
    it could not be rolled back.
    """

    def recover(trouble: NotFinite | OutOfMemory) -> None:
        _recover(session, learner, lesson, trouble, may_adapt, roll_back, remark)

    while learner.step < lesson.schedule.total_steps:
        trouble = None
        try:
            if not between():
                break
            began = time.monotonic()
            loss, rate = take_step(
                session.base_model, learner, lesson, session.effort, max_grad_norm=max_grad_norm
            )
        except NotFinite as error:
            trouble = error
        except (MemoryError, RuntimeError) as error:
            trouble = _out_of_memory(error, learner.step + 1)
        if trouble:  # out here the failed step's tensors are gone
            recover(trouble)
            continue
        seconds = time.monotonic() - began
        learner.loss_average = average(learner.loss_average, loss, learner.step)
        on_step(
            StepDone(
                learner.step,
                loss,
                rate,
                seconds,
                _validated(session, learner, lesson, recover, between, remark),
            )
        )


def _out_of_memory(error: Exception, step: int) -> OutOfMemory:
    """Return what an error at a step means if memory ran out; raises it if it is another."""
    if not is_out_of_memory(error):
        raise error
    return OutOfMemory(step, describe_out_of_memory(error))


def _validated(
    session: Session,
    learner: Learner,
    lesson: Lesson,
    recover: Callable[[OutOfMemory], None],
    between: Callable[[], bool],
    remark: Callable[[str], None],
) -> float | None:
    """Measure what is kept out of training, if it is time; memory may run out here too."""
    while lesson.is_measured_after(learner.step):
        try:
            loss = validate(session, lesson, between)
            if loss is None or math.isfinite(loss):
                return loss
            remark(
                "The validation loss is not a finite number any more (first at step"
                f" {learner.step}); it is left out of the curve."
            )
            return None
        except (MemoryError, RuntimeError) as error:
            trouble = _out_of_memory(error, learner.step)
        recover(trouble)
    return None


def average(before: float | None, loss: float, step: int) -> float:
    """Smooth the loss over the last steps; `step` counts from 1."""
    return loss if before is None else before + (loss - before) / min(step, AVERAGED_OVER_STEPS)


def take_step(
    base_model: BaseModel,
    learner: Learner,
    lesson: Lesson,
    effort: Effort,
    *,
    max_grad_norm: float = 1.0,
) -> tuple[float, float]:
    """Take one optimizer step and return its loss and learning rate. Raises `NotFinite` before a
    weight is changed, and whatever torch raises.
    """
    parameters, scaler = learner.adapters.parameters(), learner.scaler
    learner.rates.set(learner.step)
    for _ in range(MOST_SKIPPED if scaler.is_enabled() else 1):
        loss = _backward(base_model, lesson, learner.step, effort, scaler)
        if not math.isfinite(loss):
            raise _not_finite(learner, lesson, "loss", loss)
        scaler.unscale_(learner.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf).item()
        if math.isfinite(norm):
            break
        if scaler.is_enabled():  # float16's range was too small: once more with a smaller scale
            scaler.step(learner.optimizer)
            scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
    else:
        raise _not_finite(learner, lesson, "loss's gradient", norm)
    learner.half_done = True
    scaler.step(learner.optimizer)
    learner.step += 1
    learner.after_step()
    learner.half_done = False
    scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    return loss, effective_rate(learner.optimizer)


def _recover(
    session: Session,
    learner: Learner,
    lesson: Lesson,
    trouble: NotFinite | OutOfMemory,
    may_adapt: bool,
    roll_back: Callable[[], None] | None,
    remark: Callable[[str], None],
) -> None:
    """Give back what the step took, go back to whole weights, and change how steps are computed;
    raises the trouble when nothing is left to try.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    precision.free_memory(session.base_model.device)
    spoiled = learner.half_done or not learner.adapters.are_finite()
    if spoiled:
        if roll_back is None:
            raise trouble
        roll_back()
    if isinstance(trouble, OutOfMemory):
        rung = (
            with_less_memory(
                session.effort, lesson.largest_batch(), needs_encoders=lesson.texts.change
            )
            if may_adapt
            else None
        )
    else:
        rung = with_safer_numbers(
            session.effort,
            session.base_model.dtype,
            has_bf16=precision.has_bf16(session.base_model.device),
        )
    if rung is None:
        raise trouble
    effort, how = rung
    remark(
        f"{trouble} Going on {'from step ' + str(learner.step) + ' ' if spoiled else ''}with {how}."
    )
    session.change(effort)
    if isinstance(trouble, NotFinite):
        learner.compute_in(effort.dtype)


def _not_finite(learner: Learner, lesson: Lesson, what: str, value: float) -> NotFinite:
    numbers = [
        number
        for batch in lesson.schedule.batches_of(learner.step, lesson.encoded)
        for number in batch
    ]
    return NotFinite(learner.step + 1, what, value, sorted(set(numbers)))


def _backward(base_model: BaseModel, lesson: Lesson, step: int, effort: Effort, scaler) -> float:
    """Add up the gradients of one step's batches and return their mean loss."""
    schedule, seed = lesson.schedule, lesson.schedule.seed
    batches, total = schedule.batches_of(step, lesson.encoded), 0.0
    for part, numbers in enumerate(batches):
        number = step * schedule.accumulation + part
        batch = assemble(lesson.encoded, numbers, seed=seed, number=number)
        captions, task = (
            lesson.texts.draw(batch, seed=seed, number=number),
            lesson.objective.draw(batch.latents.shape, seed=seed, number=number),
        )
        at_once = effort.at_once or len(numbers)
        for start in range(
            0, len(numbers), at_once
        ):  # all but dropouts was drawn for the whole batch, so portions change nothing
            portion = slice(start, start + at_once)
            with torch.random.fork_rng(
                devices=[base_model.device] if base_model.device.type == "cuda" else []
            ):
                torch.manual_seed(
                    generator(
                        seed, f"dropout {start}" if start else "dropout", number
                    ).initial_seed()
                )
                loss = (
                    _losses(base_model, lesson, batch, captions, task, portion, effort.dtype).sum()
                    / len(numbers)
                    / len(batches)
                )
                scaler.scale(loss).backward()
            total += loss.item()
    return total


def _losses(
    base_model: BaseModel,
    lesson: Lesson,
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
        lesson.objective,
        task[portion],
    )
    weights = (
        objective.weights(task.timesteps, schedule, base_model.prediction_type)
        * batch.weights[portion]
    ).to(device)
    borders = objective.borders(task.timesteps, schedule)
    masks = None if batch.masks is None else batch.masks[portion].to(device)
    latents, timesteps = batch.latents[portion].to(device), task.timesteps.to(device)
    noisy = diffusion.add_noise(latents, task.shown.to(device), timesteps, schedule)
    wanted = diffusion.target(
        latents, task.noise.to(device), timesteps, schedule, base_model.prediction_type
    )
    with precision.autocast(device, dtype):
        predicted = base_model.predict(
            noisy, timesteps, lesson.texts.conditioning(base_model, batch, captions, portion, dtype)
        )
    return objective.losses(predicted, wanted, borders=borders, masks=masks) * weights


# --- Pictures that are only measured --------------------------------------------------------------


def validate(
    session: Session, lesson: Lesson, between: Callable[[], bool] = lambda: True
) -> float | None:
    """Return the mean squared error of the pictures kept out of training, at the same noise and
    timesteps each time, and without dropout.

    `between()` runs before each picture, and may give the model to others; when it says False,
    nothing is returned.
    """
    total = 0.0
    for number in lesson.measured:
        if not between():
            return None
        with torch.no_grad(), session.adapters.nothing_left_out():
            total += _measured(session.base_model, lesson, number, session.effort.dtype)
    return total / len(lesson.measured)


def _measured(base_model: BaseModel, lesson: Lesson, number: int, dtype: torch.dtype) -> float:
    """Return one picture's mean squared error, within its mask, at timesteps spread evenly over
    those that are trained.
    """
    device, schedule, seed = base_model.device, base_model.alphas_cumprod, lesson.schedule.seed
    batch = assemble(lesson.encoded, [number], seed=seed, number=-1 - number)
    latents, masks = (
        batch.latents.to(device),
        (None if batch.masks is None else batch.masks.to(device)),
    )
    lowest, below = lesson.objective.min_timestep, lesson.objective.max_timestep
    squares = []
    with precision.autocast(device, dtype):
        told = lesson.texts.conditioning(base_model, batch, batch.captions, slice(0, 1), dtype)
    for place in range(MEASURED_TIMESTEPS):
        timesteps = torch.tensor(
            [lowest + int((place + 0.5) / MEASURED_TIMESTEPS * (below - lowest))], device=device
        )
        noise = torch.randn(
            latents.shape, generator=generator(seed, f"validation {place}", number)
        ).to(device)
        with precision.autocast(device, dtype):
            predicted = base_model.predict(
                diffusion.add_noise(latents, noise, timesteps, schedule), timesteps, told
            )
        wanted = diffusion.target(latents, noise, timesteps, schedule, base_model.prediction_type)
        squares.append(Objective().losses(predicted, wanted, masks=masks).item())
    return sum(squares) / len(squares)
