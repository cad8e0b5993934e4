"""The training loop: data → forward → backward → optimizer step → callbacks, until the steps are
done or a callback ends it.

Knows nothing of files, jobs or hosts; what is done between two steps is the callbacks'.
"""

import dataclasses
import math
import time
from collections.abc import Callable

from . import step, validation
from .model_patches import ModelPatches
from .recovery import Recovery
from .train_state import TrainState
from .training_data import TrainingData


@dataclasses.dataclass(frozen=True)
class FinishedStep:
    """A finished optimizer step, counted from 1. `seconds` is how long it computed, without
    validation; `validation_loss` is None where none was due.
    """

    step: int
    loss: float
    loss_average: float
    learning_rate: float
    seconds: float
    validation_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class LoopCallbacks:
    """`before_step()` runs before each step and each validation picture, when no autograd graph is
    alive, and ends the loop by False; `after_step(finished)` runs after each step.
    """

    before_step: Callable[[], bool] = lambda: True
    after_step: Callable[[FinishedStep], None] = lambda finished: None


def train(
    patches: ModelPatches,
    train_state: TrainState,
    training_data: TrainingData,
    *,
    callbacks: LoopCallbacks = LoopCallbacks(),
    recovery: Recovery | None = None,
    max_grad_norm: float = 1.0,
) -> None:
    """Take the steps that are left; raises what `Recovery.retry` raises."""
    recovery = recovery or Recovery(patches, train_state, training_data)

    def next_step() -> FinishedStep | None:
        if not callbacks.before_step():
            return None
        began = time.monotonic()
        loss, rate = take_step(patches, train_state, training_data, max_grad_norm=max_grad_norm)
        seconds = time.monotonic() - began
        average = train_state.average_loss(loss)
        return FinishedStep(train_state.step, loss, average, rate, seconds)

    def validation_loss() -> float | None:
        return validation.validate_if_due(
            patches, training_data, train_state.step, callbacks.before_step, recovery.warn
        )

    while train_state.step < training_data.schedule.total_steps:
        finished = recovery.retry(next_step)
        if finished is None:
            return
        loss = recovery.retry(validation_loss, within_step=False)
        callbacks.after_step(dataclasses.replace(finished, validation_loss=loss))


def take_step(
    patches: ModelPatches,
    train_state: TrainState,
    training_data: TrainingData,
    *,
    max_grad_norm: float,
) -> tuple[float, float]:
    """Take one optimizer step and return its loss and learning rate. Raises `NotFinite` before a
    weight is changed, and whatever torch raises.
    """
    base_model, compute_mode = patches.base_model, patches.compute_mode
    train_state.rates.set(train_state.step)
    for _ in range(step.max_attempts(train_state)):
        loss = step.forward_backward(
            base_model, training_data, train_state.step, compute_mode, train_state.scaler
        )
        norm = step.clip_gradients(train_state, max_grad_norm)
        if math.isfinite(norm):
            return loss, step.optimizer_step(train_state)
        step.skip_step(train_state)
    raise step.not_finite(training_data, train_state.step, "loss's gradient", norm)
