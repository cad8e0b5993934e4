"""The records of a job: its kind and state, `JobRow` (a row of the table, read by store.py),
`JobEnd` (how its work ended) and `JobView` (what the API and the events say of it, made by
job_views.py).
"""

import dataclasses
import enum
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ..captioning.options import OptionValues
from ..captioning.run import CaptionFailure
from ..settings.setting import WrittenSettings


class JobKind(str, enum.Enum):
    TRAINING = "training"
    CAPTIONING = "captioning"

    def __str__(self) -> str:
        return self.value


class JobState(str, enum.Enum):
    """Where a job is. The values are those of the database and of the API."""

    QUEUED = "queued"
    PREPARING = "preparing"
    TRAINING = "training"
    CAPTIONING = "captioning"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    def __str__(self) -> str:
        return self.value


STARTED = (JobState.PREPARING, JobState.TRAINING, JobState.CAPTIONING, JobState.PAUSED)
ALIVE = (JobState.QUEUED, *STARTED)  # all others have ended
INTERRUPTED_MESSAGE = "The program ended while this was running."


@dataclasses.dataclass(frozen=True)
class JobRow:
    """A row of the table of jobs; fields are named as its columns.

    `config` is what was asked for: a TrainConfig's fields, in jobs of older versions without those
    that came later, or a `CaptioningConfig`. `progress` is the last figures that the job wrote
    down. `resume` says
    how it begins: "" anew, "same" from its training state, "anyway" from its training state though
    the data have changed. `for_checkpoint`, `for_sha256`, `for_kind` (family, variant and size)
    describe the checkpoint that was loaded when the job was added. Times are Unix seconds.
    """

    id: str
    name: str
    kind: JobKind
    state: JobState
    created_at: float
    finished_at: float | None
    config: WrittenSettings
    progress: "JobFigures"
    message: str
    error: str | None
    output_file: str | None
    lora_tag: str | None
    position: int | None
    resume: str
    for_checkpoint: str
    for_sha256: str | None
    for_kind: str

    @classmethod
    def read(cls, row: sqlite3.Row) -> "JobRow":
        values: dict[str, Any] = {field.name: row[field.name] for field in dataclasses.fields(cls)}
        values["id"] = str(row["id"])
        values["kind"] = JobKind(row["kind"])
        values["state"] = JobState(row["state"])
        values["config"] = json.loads(row["config"])
        values["progress"] = json.loads(row["progress"])
        return cls(**values)

    def as_dict(self) -> dict[str, object]:
        """Return the columns by name, and the figures of `progress` among them."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**columns.pop("progress"), **columns}


class CaptioningConfig(TypedDict):
    """What a captioning job is asked for; `filenames` None means all pictures."""

    dataset: str
    captioner: str
    options: OptionValues
    overwrite: bool
    filenames: list[str] | None


@dataclasses.dataclass(frozen=True)
class NewJob:
    """A job to be put into the queue; `figures` are known before it begins."""

    name: str
    kind: JobKind
    config: Mapping[str, object]
    figures: "JobFigures"
    checkpoint: str = ""
    sha256: str | None = None
    model_kind: str = ""


class JobColumns(TypedDict, total=False):
    """Columns of a row that are set together."""

    name: str
    state: JobState
    finished_at: float | None
    config: Mapping[str, object]
    progress: "JobFigures"
    message: str
    error: str | None
    output_file: str | None
    lora_tag: str | None
    resume: str


@dataclasses.dataclass(frozen=True)
class JobEnd:
    """How a job's work ended. Without an output file the row keeps the one that it has."""

    state: JobState
    message: str = ""
    error: str | None = None
    output_file: str | None = None
    lora_tag: str | None = None

    def columns(self) -> JobColumns:
        """Return the last values of the job's row; it ends now."""
        columns: JobColumns = {
            "state": self.state,
            "finished_at": time.time(),
            "error": self.error,
            "message": self.message,
        }
        if self.output_file:
            columns["output_file"] = self.output_file
            columns["lora_tag"] = self.lora_tag
        return columns


class JobFigures(TypedDict, total=False):
    """What a job reports while it runs. Training has steps, captioning has pictures done."""

    fraction: float
    pictures: int | None
    eta_seconds: float | None
    # training
    stage: str
    step: int
    total_steps: int | None
    epoch: int
    loss: float | None
    loss_average: float | None
    validation_loss: float | None
    learning_rate: float | None
    seconds_per_step: float | None
    elapsed_seconds: float | None
    # captioning
    dataset: str
    captioner: str
    done: int
    total: int
    written: int
    skipped: int
    failed: list[CaptionFailure]


class JobUpdate(JobFigures, total=False):
    """What is newer than a job's row: the figures of the running job, or how it ended."""

    state: JobState
    finished_at: float | None
    message: str
    error: str | None
    output_file: str | None
    lora_tag: str | None
    checkpoint: str
    waiting_for: str
    state_step: int
    snapshots: Sequence[str]
    remarks: Sequence[str]
    stopping: bool
    pausing: bool
    free_memory: bool


class JobView(JobFigures):
    """A job as the API gives it; the keys are those of the JSON."""

    id: str
    name: str
    kind: JobKind
    state: JobState
    position: int | None  # among the jobs that wait, from 0
    created_at: float
    finished_at: float | None
    ended_at: float | None  # the same, under the name that the API documents
    config: WrittenSettings
    message: str
    error: str | None
    output_file: str | None
    lora_tag: str | None
    checkpoint: str
    waiting_for: str  # why it is paused: "user" or "checkpoint", else ""
    resumable: bool
    resume_step: int | None  # of the newest training state
    state_step: int
    snapshots: Sequence[str]
    remarks: Sequence[str]  # warnings
    stopping: bool
    pausing: bool
    free_memory: bool
    tensorboard_dir: str | None


class QueueStatus(TypedDict):
    queue_held: bool
    queued: int  # how many jobs wait


class HostView(TypedDict):
    kind: str
    version: str
    default_size_px: int  # of a picture that is drawn with the loaded checkpoint


class ServiceStatus(QueueStatus):
    """What the API says of this program; `model` is a `ModelStatus`."""

    version: str
    host: HostView
    model: dict[str, Any]
    lora_dir: str
    data_dir: str
    current_job: JobView | None
    problems: list[str]
