"""The training states of a run on disk: when one is due, saving it, and going back to the last.

A disk that refuses costs the state only: training goes on, and it is tried again.
"""

import time
from collections.abc import Callable

from ..base.errors import ErrorCode, Refused
from ..training import state_files
from .context import RunContext
from .facts import SavedFacts, saved_facts
from .prepare import PreparedRun
from .retry import Retry


class SavedStates:
    """`elapsed_seconds()` is the time that the run has taken so far, over all its parts."""

    def __init__(
        self, context: RunContext, run: PreparedRun, elapsed_seconds: Callable[[], float]
    ) -> None:
        self._context = context
        self._run = run
        self._elapsed_seconds = elapsed_seconds
        self._retry = Retry()
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Tell whether the settings ask for a state now, or a failed one is to be tried again."""
        if self._retry.is_pending:
            return self._retry.is_due()
        if self._saved_step is None:
            return True
        config = self._context.config
        every_steps, every_seconds = config.save_state_steps, 60 * config.save_state_minutes
        if every_steps and self._run.train_state.step % every_steps == 0:
            return True
        return bool(every_seconds) and time.monotonic() - self._saved_at >= every_seconds

    def save(self) -> None:
        """Save the state, unless it is on disk already; a disk that refuses is a warning."""
        folder, step = self._context.states, self._run.train_state.step
        if folder is None or self._saved_step == step:
            return
        reporter = self._context.reporter
        facts: SavedFacts = {
            **self._run.facts,
            "forced": self._run.patches.compute_mode.overrides(self._run.chosen_mode),
            "snapshots": list(reporter.status.snapshots),
            "elapsed_seconds": self._elapsed_seconds(),
        }
        try:
            state = self._run.train_state.state(facts)
            state_files.save(folder, state, keep=self._context.config.keep_states)
        except (OSError, MemoryError) as error:
            self._retry.postpone()
            reporter.warn(
                f"The progress cannot be kept in {folder}"
                f" ({getattr(error, 'strerror', None) or error}); training goes on, and a crash now"
                " costs more. Free some space or mend its permissions; it is tried again every"
                " half minute.",
                about="state",
            )
            return
        self._retry.clear()
        reporter.withdraw_warning("state")
        self._saved_step = step
        self._saved_at = time.monotonic()
        reporter.update(state_step=step)

    def save_while_paused(self) -> None:
        """Save the state as `save` does; called at every moment, it leaves a disk that has just
        refused alone for a while.
        """
        if not self._retry.is_pending or self._retry.is_due():
            self.save()

    def save_at_end(self) -> None:
        """Save the state at the end of the steps, whatever ended them; weights that an error
        spoiled are left to the state before.
        """
        train_state = self._run.train_state
        if not train_state.in_optimizer_step and train_state.adapters.are_finite():
            self.save()

    def roll_back(self) -> None:
        """Set the train state back to the last state; raises `Refused` when there is none of this
        run.
        """
        folder = self._context.states
        state = state_files.latest(folder) if folder else None
        if state is None or saved_facts(state)["session"] != self._context.session_id:
            raise Refused(
                "A step was broken off in the middle, and there is no progress on disk to go back"
                " to. Train again.",
                code=ErrorCode.SPOILED,
            )
        self._run.train_state.restore(state)
