"""What a run reports: `StepMetrics` is an event, sent once for each optimizer step; `RunStatus` is
a state, sent whenever it changes. `ProgressReporter` sends both.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

log = logging.getLogger(__name__)


class StepMetrics(NamedTuple):
    """The figures of one optimizer step: a row of metrics.csv, of the chart and of the API.

    `seconds` is the time since the run was begun, over all its parts; `validation_loss` is None
    where none was due.
    """

    step: int  # counted from 1
    loss: float
    loss_average: float
    learning_rate: float
    seconds: float
    validation_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """Where a run is. `stage` is "preparing", "training" or "paused"; `message` is for the user.

    `waiting_for` says why a run is paused: "user", or "checkpoint" when the one it trains,
    `checkpoint`, is not loaded as it was. `elapsed_seconds` is the time spent encoding and in
    steps, over all parts of a run that was interrupted. `state_step` is the last step that a crash
    would not cost; `snapshots` are the names of LoRAs saved on the way; `warnings` are sentences
    for the user. The figures of steps are those of the newest step that has them.
    """

    stage: str = "preparing"
    message: str = ""
    fraction: float = 0.0  # of the stage, in [0, 1]
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    loss: float | None = None
    loss_average: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    pictures: int = 0
    elapsed_seconds: float | None = None
    waiting_for: str = ""
    checkpoint: str = ""
    state_step: int = 0
    snapshots: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the status under the keys of the API and of the jobs' database."""
        values = dataclasses.asdict(self)
        values["remarks"] = values.pop("warnings")
        return values


class ProgressReporter:
    """Keeps a run's status and sends each change of it to `on_status`.

    `on_step` gets the figures of each finished step, with the status after it, before `on_status`
    does.
    """

    def __init__(
        self,
        on_status: Callable[[RunStatus], None] = lambda status: None,
        on_step: Callable[[StepMetrics, RunStatus], None] = lambda metrics, status: None,
    ) -> None:
        self.status = RunStatus()
        self._on_status = on_status
        self._on_step = on_step
        self._warnings: dict[str, str] = {}

    def update(self, **changes: Any) -> None:
        """Change fields of the status and send it."""
        self.status = dataclasses.replace(self.status, **changes)
        self._on_status(self.status)

    def finish_step(self, metrics: StepMetrics, **changes: Any) -> None:
        """Send the figures of a step, and the status with these and other changes."""
        validation_loss = metrics.validation_loss
        if validation_loss is None:
            validation_loss = self.status.validation_loss
        self.status = dataclasses.replace(
            self.status,
            step=metrics.step,
            loss=metrics.loss,
            loss_average=metrics.loss_average,
            learning_rate=metrics.learning_rate,
            validation_loss=validation_loss,
            **changes,
        )
        self._on_step(metrics, self.status)
        self._on_status(self.status)

    def warn(self, sentence: str, *, about: str = "") -> None:
        """Add a warning, once however often it happens; a new one about the same thing takes the
        place of the old one.
        """
        log.warning(sentence)
        key = about or sentence
        if self._warnings.get(key) == sentence:
            return
        self._warnings.pop(key, None)
        self._warnings[key] = sentence
        self.update(warnings=tuple(self._warnings.values()))

    def withdraw_warning(self, about: str) -> None:
        """Remove the warning about a thing that is mended."""
        if self._warnings.pop(about, None):
            self.update(warnings=tuple(self._warnings.values()))
