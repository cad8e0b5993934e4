"""Stands by a run between its steps: tells how far it is, keeps its state, saves snapshots, pauses,
gives way, and notes what goes wrong.

What it fails to write costs nothing but that file: training goes on in memory, and it is tried
again.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..base.contracts import Host, Progress
from ..base.control import Control
from ..base.errors import Refused
from ..settings.config import TrainConfig
from ..training import state_files
from ..training.compute_mode import ComputeMode
from ..training.loop import FinishedStep
from ..training.model_patches import ModelPatches
from ..training.precision import free_memory
from ..training.train_state import TrainState
from ..training.training_data import Schedule
from .give_way import Sharing
from .output_files import Output

log = logging.getLogger(__name__)
RETRY_SECONDS = 30.0


class ProgressReporter:
    """Keeps the last `Progress` and tells every new one; remarks are sentences that stay for the
    user to read.
    """

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress, self.now, self._remarks = on_progress, Progress("preparing"), {}

    def tell(self, **changes: Any) -> None:
        self.now = dataclasses.replace(self.now, **changes)
        self._on_progress(self.now)

    def remark(self, sentence: str, *, about: str = "") -> None:
        """Say a thing once, however often it happens; a new remark about the same thing takes the
        old one's place.
        """
        log.warning(sentence)
        if self._remarks.get(about or sentence) != sentence:
            self._remarks.pop(about, None)
            self._remarks[about or sentence] = sentence
            self.tell(remarks=tuple(self._remarks.values()))

    def withdraw(self, about: str) -> None:
        """It is not so any more."""
        if self._remarks.pop(about, None):
            self.tell(remarks=tuple(self._remarks.values()))


class RunCallbacks:
    """`write(path)` writes the LoRA as it is now; `facts` go into every state; `chosen` is how
    steps were to be computed, `elapsed_seconds` the time that was spent before the first step.
    """

    def __init__(  # noqa: PLR0913
        self,
        config: TrainConfig,
        schedule: Schedule,
        host: Host,
        control: Control,
        *,
        patches: ModelPatches,
        train_state: TrainState,
        output: Output,
        write: Callable[[Path], None],
        facts: dict[str, Any],
        states: Path | None,
        sharing: Sharing,
        reporter: ProgressReporter,
        chosen: ComputeMode,
        elapsed_seconds: float = 0.0,
    ) -> None:
        self._config, self._schedule, self._host, self._control = config, schedule, host, control
        self._patches, self._train_state, self._output, self._write, self._facts, self._states = (
            patches,
            train_state,
            output,
            write,
            facts,
            states,
        )
        self._sharing, self._reporter, self._chosen, self._memory_is_free = (
            sharing,
            reporter,
            chosen,
            False,
        )
        self._state_step, self._state_at = None, time.monotonic()
        self._saved_step, self._live_step, self._retry = (
            0,
            0,
            {},
        )  # what could not be written, and when to try again
        self._seconds, self._steps_timed, self._first_step, self._elapsed = (
            0.0,
            0,
            train_state.step + 1,
            elapsed_seconds,
        )

    # --- Called by the trainer --------------------------------------------------------------------

    def before_step(self) -> bool:
        """Do what is due between two steps; False when the run is to end."""
        if self._control.should_stop() or (
            self._sharing.is_wanted() and not self._give_way()
        ):  # nobody waits for our files
            return False
        self._take_memory_back()
        if self._state_is_due():
            self.save_state()
        if self._snapshot_is_due():
            self._snapshot()
        return True

    def after_step(self, done: FinishedStep) -> None:
        if (
            done.step > self._first_step
        ):  # the first step warms caches up and would spoil the estimate
            self._seconds, self._steps_timed = self._seconds + done.seconds, self._steps_timed + 1
        self._elapsed += done.seconds
        each, schedule = (
            (self._seconds / self._steps_timed if self._steps_timed else done.seconds),
            self._schedule,
        )
        validation_indices = (
            {} if done.validation_loss is None else {"validation_loss": done.validation_loss}
        )
        self._reporter.tell(
            stage="training",
            message="Training",
            **validation_indices,
            fraction=done.step / schedule.total_steps,
            step=done.step,
            total_steps=schedule.total_steps,
            epoch=(done.step - 1) // schedule.steps_per_epoch + 1,
            loss=done.loss,
            loss_average=self._train_state.loss_average,
            learning_rate=done.learning_rate,
            seconds_per_step=each,
            elapsed_seconds=self._elapsed,
            eta_seconds=each * (schedule.total_steps - done.step),
        )

    def roll_back(self) -> None:
        """Set the train state back to its last state; raises `Refused` when there is none of this
        run.
        """
        state = state_files.latest(self._states) if self._states else None
        if state is None or state.facts["session"] != self._facts["session"]:
            raise Refused(
                "A step was broken off in the middle, and there is no progress on disk to go back"
                " to. Train again.",
                code="spoiled",
            )
        self._train_state.restore(state)

    # --- Files ------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Keep the state on disk; a disk that refuses is told once and tried again later."""
        if self._states is None or self._state_step == self._train_state.step:
            return
        facts = {
            **self._facts,
            "forced": self._patches.compute_mode.overrides(self._chosen),
            "snapshots": list(self._reporter.now.snapshots),
            "elapsed_seconds": self._elapsed,
        }
        try:
            state_files.save(
                self._states, self._train_state.state(facts), keep=self._config.keep_states
            )
        except (OSError, MemoryError) as error:
            self._retry["state"] = time.monotonic() + RETRY_SECONDS
            self._reporter.remark(
                f"The progress cannot be kept in {self._states}"
                f" ({getattr(error, 'strerror', None) or error}); training goes on, and a crash now"
                " costs more. Free some space or mend its permissions; it is tried again every"
                " half minute.",
                about="state",
            )
            return
        self._retry.pop("state", None)
        self._reporter.withdraw("state")
        self._state_step, self._state_at = self._train_state.step, time.monotonic()
        self._reporter.tell(state_step=self._train_state.step)

    def keep(self) -> None:
        """Save the state at the end of the steps, whatever ended them; weights that an error
        spoiled are left to the state before.
        """
        if not self._train_state.in_optimizer_step and self._train_state.adapters.are_finite():
            self.save_state()

    def write_live(self) -> Path | None:
        """Write the LoRA under its own name as it is at this moment, and return where; None when
        nothing is newer than what is there.

        Called by whoever is about to use it, in their thread, while the run stands still.
        """
        if self._train_state.step <= self._live_step or not self._output.write_early(self._write):
            return None
        self._live_step = self._train_state.step
        return self._output.path

    def _state_is_due(self) -> bool:
        if "state" in self._retry:
            return time.monotonic() >= self._retry["state"]
        minutes, steps, step = (
            self._config.save_state_minutes,
            self._config.save_state_steps,
            self._train_state.step,
        )
        return (
            self._state_step is None
            or (steps and step % steps == 0)
            or (minutes and time.monotonic() - self._state_at >= 60 * minutes)
        )

    def _snapshot_is_due(self) -> bool:
        step = self._train_state.step
        asked = self._control.snapshot_asked()
        if "snapshot" in self._retry and time.monotonic() >= self._retry["snapshot"]:
            return True
        return (
            step > self._saved_step
            and step < self._schedule.total_steps
            and (asked or self._is_regular(step))
        )

    def _is_regular(self, step: int) -> bool:
        """Tell whether the settings want a snapshot after this step."""
        epoch_steps = self._config.save_every_n_epochs * self._schedule.steps_per_epoch
        return any(every and step % every == 0 for every in (self._config.save_steps, epoch_steps))

    def _snapshot(self) -> None:
        """Save and register `name-000100`, and the name itself, so that its tag means the
        newest.
        """
        path = self._output.snapshot_path(self._train_state.step)
        try:
            self._write(path)
            names = self._without_old(
                tuple(dict.fromkeys((*self._reporter.now.snapshots, path.stem)))
            )
            self._host.register(path)  # lists the folder, without the old ones
            if self._output.write_early(self._write):
                self._host.register(self._output.path)
                self._live_step = self._train_state.step
        except Refused as error:
            if error.code != "cannot_save":
                raise
            self._retry["snapshot"] = time.monotonic() + RETRY_SECONDS
            self._reporter.remark(
                f"{error.message} Training goes on; it is tried again every half minute.",
                about="snapshot",
            )
            return
        self._retry.pop("snapshot", None)
        self._reporter.withdraw("snapshot")
        self._saved_step = self._train_state.step
        self._reporter.tell(snapshots=names)
        log.info("saved the snapshot %s", path.name)

    def _without_old(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Remove this run's oldest regular snapshots beyond `keep_snapshots`; returns the names of
        those that stay.
        """
        keep, regular = self._config.keep_snapshots, {}
        for name in names if keep else ():
            if (step := self._output.step_of(name)) and self._is_regular(step):
                regular[name] = step
        old = sorted(regular, key=regular.__getitem__)[:-keep] if keep else []
        removed = {name for name in old if self._output.remove_snapshot(name)}
        return tuple(name for name in names if name not in removed)

    # --- Others -----------------------------------------------------------------------------------

    def _give_way(self) -> bool:
        def put_back() -> None:
            self._take_memory_back()
            self._patches.open()

        return self._sharing.give_way(
            self._train_state.step,
            lift=self._patches.close,
            put_back=put_back,
            while_paused=self._be_paused,
        )

    def _be_paused(self) -> None:
        """What a pause is for: the progress is kept, memory is free if that was asked for, a
        snapshot can be had.
        """
        self.save_state()
        if self._control.memory_asked and not self._memory_is_free:
            self._memory_is_free = True
            self._train_state.to(torch.device("cpu"))
            free_memory(self._patches.base_model.device)
        if self._snapshot_is_due():
            self._snapshot()

    def _take_memory_back(self) -> None:
        """Also when that failed in the middle the last time, because memory ran out."""
        if self._memory_is_free:
            self._train_state.to(self._patches.base_model.device)
            self._memory_is_free = False
