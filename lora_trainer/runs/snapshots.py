"""LoRAs that are saved while a run trains: numbered snapshots, and the LoRA's own name, so that its
tag means the newest.

A disk that refuses costs the snapshot only: training goes on, and it is tried again.
"""

import logging
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from .context import RunContext
from .prepare import PreparedRun
from .registering import register
from .retry import Retry

log = logging.getLogger(__name__)


class Snapshots:
    """The snapshots of one run; `saved_step` and `live_step` are those of the newest snapshot and
    of what was last written under the LoRA's own name.
    """

    def __init__(self, context: RunContext, run: PreparedRun) -> None:
        self._context = context
        self._run = run
        self._schedule = run.training_data.schedule
        self._retry = Retry()
        self._saved_step = 0
        self._live_step = 0

    def is_due(self) -> bool:
        """Tell whether the user or the settings ask for a snapshot now, or a failed one is to be
        tried again. Forgets the user's request.
        """
        requested = self._context.control.pop_snapshot_request()
        if self._retry.is_pending:
            return requested or self._retry.is_due()
        step = self._run.train_state.step
        if step <= self._saved_step or step >= self._schedule.total_steps:
            return False
        return requested or self._is_regular(step)

    def save(self) -> None:
        """Save and register `name-000100`, and the name itself."""
        context, step = self._context, self._run.train_state.step
        path = context.output.snapshot_path(step)
        try:
            self._run.writer.write(path)
            names = self._without_old([*context.reporter.status.snapshots, path.stem])
            register(context, path)  # lists the folder, without the old ones
            if context.output.write_before_end(self._run.writer.write):
                register(context, context.output.path)
                self._live_step = step
        except Refused as error:
            if error.code != ErrorCode.CANNOT_SAVE:
                raise
            self._retry.postpone()
            context.reporter.warn(
                f"{error.message} Training goes on; it is tried again every half minute.",
                about="snapshot",
            )
            return
        self._retry.clear()
        context.reporter.withdraw_warning("snapshot")
        self._saved_step = step
        context.reporter.update(snapshots=names)
        log.info("saved the snapshot %s", path.name)

    def write_live(self) -> Path | None:
        """Write the LoRA under its own name as it is at this moment, and return where; None when
        nothing is newer than what is there.

        Called by whoever is about to use it, in their thread, while the run stands still.
        """
        output, step = self._context.output, self._run.train_state.step
        if step <= self._live_step or not output.write_before_end(self._run.writer.write):
            return None
        self._live_step = step
        return output.path

    def _is_regular(self, step: int) -> bool:
        """Tell whether the settings ask for a snapshot after this step."""
        config = self._context.config
        epoch_steps = config.save_every_n_epochs * self._schedule.steps_per_epoch
        return any(every and step % every == 0 for every in (config.save_steps, epoch_steps))

    def _without_old(self, names: list[str]) -> tuple[str, ...]:
        """Remove this run's oldest regular snapshots beyond `keep_snapshots`; return the names of
        those that stay, each once.
        """
        keep = self._context.config.keep_snapshots
        names = list(dict.fromkeys(names))
        if not keep:
            return tuple(names)
        output = self._context.output
        regular = {}
        for name in names:
            step = output.step_of(name)
            if step and self._is_regular(step):
                regular[name] = step
        oldest_first = sorted(regular, key=regular.__getitem__)
        removed = {name for name in oldest_first[:-keep] if output.remove_snapshot(name)}
        return tuple(name for name in names if name not in removed)
