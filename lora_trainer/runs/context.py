"""What is known of a run before the model is borrowed: settings, plan, host, and the training state
that it goes on from.
"""

import dataclasses
import time
from pathlib import Path

from ..base.contracts import Host
from ..base.control import Control
from ..settings.config import TrainConfig
from ..training.state_files import State
from .output_files import OutputFiles
from .plan import Plan
from .progress import ProgressReporter


@dataclasses.dataclass(frozen=True)
class RunContext:
    """`earlier` is the training state to go on from, None for a run from its first step; `anyway`:
    go on although things have changed since. `states` is the folder of training states, None where
    none are kept. `session_id` is the run's name for itself, seconds since 1970.
    """

    config: TrainConfig
    plan: Plan
    host: Host
    control: Control
    reporter: ProgressReporter
    output: OutputFiles
    session_id: float
    states: Path | None = None
    earlier: State | None = None
    anyway: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)
