"""What a run does between its steps: stop, pause, give way, keep training states, save snapshots,
and report each step.
"""

import logging
import time

import torch

from ..training.loop import FinishedStep
from ..training.precision import free_memory
from .context import RunContext
from .give_way import GiveWay
from .prepare import PreparedRun
from .progress import StepMetrics
from .saved_states import SavedStates
from .snapshots import Snapshots

log = logging.getLogger(__name__)


class StepTimer:
    """How long steps take, and the whole run over all its parts."""

    def __init__(self, elapsed_seconds: float) -> None:
        self.elapsed_seconds = elapsed_seconds
        self.seconds_per_step = 0.0
        self._steps: int | None = None  # that were timed; None before the first
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count a step. The first warms caches up, so it counts only until there is another."""
        self.elapsed_seconds += seconds
        if self._steps is None:
            self._steps = 0
            self.seconds_per_step = seconds
            return
        self._steps += 1
        self._seconds += seconds
        self.seconds_per_step = self._seconds / self._steps


class RunCallbacks:
    """The loop's callbacks in a run."""

    def __init__(self, context: RunContext, run: PreparedRun) -> None:
        self._context = context
        self._run = run
        self._timer = StepTimer(run.elapsed_seconds)
        self._give_way = GiveWay(context, stage="training")
        self._memory_is_free = False
        self.states = SavedStates(context, run, lambda: self._timer.elapsed_seconds)
        self.snapshots = Snapshots(context, run)

    def before_step(self) -> bool:
        """Do what is due between two steps; False when the run is to end, at once, as then nobody
        waits for our files.
        """
        if self._context.control.should_stop():
            return False
        if self._give_way.is_due() and not self._lend_model():
            return False
        self._take_memory_back()
        if self.states.is_due():
            self.states.save()
        if self.snapshots.is_due():
            self.snapshots.save()
        return True

    def after_step(self, finished: FinishedStep) -> None:
        """Report a step."""
        schedule, step = self._run.training_data.schedule, finished.step
        started = self._context.started
        self._timer.add(finished.seconds)
        metrics = StepMetrics(
            step=step,
            loss=finished.loss,
            loss_average=finished.loss_average,
            learning_rate=finished.learning_rate,
            seconds=round(time.monotonic() - started, 3),
            validation_loss=finished.validation_loss,
        )
        self._context.reporter.finish_step(
            metrics,
            stage="training",
            message="Training",
            fraction=step / schedule.total_steps,
            total_steps=schedule.total_steps,
            epoch=(step - 1) // schedule.steps_per_epoch + 1,
            seconds_per_step=self._timer.seconds_per_step,
            elapsed_seconds=self._timer.elapsed_seconds,
            eta_seconds=self._timer.seconds_per_step * (schedule.total_steps - step),
        )
        if step == 1:
            log.info(
                "first step done %.2f s after the start, of which encoding took %.2f s",
                time.monotonic() - started,
                self._run.encoding_seconds,
            )

    def _lend_model(self) -> bool:
        def reattach() -> None:
            self._take_memory_back()
            self._run.patches.apply()

        return self._give_way.give_way(
            self._run.train_state.step,
            detach=self._run.patches.revert,
            reattach=reattach,
            while_paused=self._while_paused,
        )

    def _while_paused(self) -> None:
        """Keep the progress, free memory if that was asked for, and save snapshots on request."""
        self.states.save_while_paused()
        if self._context.control.free_memory_requested and not self._memory_is_free:
            self._memory_is_free = True
            self._run.train_state.to(torch.device("cpu"))
            free_memory(self._run.patches.base_model.device)
        if self.snapshots.is_due():
            self.snapshots.save()

    def _take_memory_back(self) -> None:
        """Move the train state to its device; also when that failed in the middle the last time,
        because memory ran out.
        """
        if self._memory_is_free:
            self._run.train_state.to(self._run.patches.base_model.device)
            self._memory_is_free = False
