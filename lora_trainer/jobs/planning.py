"""What a run would do, for people who have not started it yet: counts, memory, time, warnings and
errors, each with the settings that would end it.
"""

from collections.abc import Sequence
from typing import TypedDict

from ..base.contracts import Host, ModelStatus
from ..base.errors import ErrorCode, Refused
from ..runs.memory import estimate
from ..runs.output_files import check_space
from ..runs.plan import BucketCount, Plan, make_plan
from ..runs.plan_warnings import model_warnings
from ..settings.config import TrainConfig
from ..settings.remedies import Advice, Remedy, RemedyView, advice_in
from ..settings.setting import WrittenSettings
from .job import JobKind, JobRow, JobState
from .output_names import OutputNames
from .settings_service import SettingsReader
from .store import JobStore

# Settings that decide how long a step takes; jobs of older versions lack those with a value here.
_DECIDE_SPEED = (
    "resolution",
    "extra_resolutions",
    "batch_size",
    "lora_targets",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "train_text_encoder",
)
_IN_OLDER_JOBS = {"train_text_encoder": False, "extra_resolutions": ""}


class _Error(TypedDict):
    code: ErrorCode
    field: str | None  # the setting to mend
    message: str


class PlanError(_Error, total=False):
    """What makes a run impossible, with remedies where they are known."""

    remedies: list[RemedyView]


class PlanProblems(TypedDict):
    """`advice` has the changes of settings that end a warning."""

    errors: list[PlanError]
    warnings: list[str]
    advice: list[Advice]


class PictureCounts(TypedDict):
    pictures: int
    regularisation_pictures: int
    validation_pictures: int
    resolutions: Sequence[int]


class PlanView(PlanProblems, total=False):
    """What a run would do, as the API gives it: `errors`, `warnings` and `advice` alone where the
    settings or the pictures are wrong. What stands in `PictureCounts` and `Estimate` is as there.
    """

    pictures: int
    regularisation_pictures: int
    validation_pictures: int
    resolutions: Sequence[int]
    buckets: list[BucketCount]
    steps: int
    epochs: float
    trainable_parameters: int | None
    estimated_memory_bytes: int | None
    file_bytes: int | None
    cache_bytes: int
    estimated_seconds: float | None
    output_file: str
    lora_tag: str


class Planner:
    def __init__(
        self, host: Host, store: JobStore, settings: SettingsReader, output_names: OutputNames
    ) -> None:
        self._host = host
        self._store = store
        self._settings = settings
        self._output_names = output_names

    def plan(self, values: WrittenSettings, *, thorough: bool = True) -> PlanView:
        """Return what a run with these settings would do; trains nothing, and raises nothing that
        makes the run impossible.
        """
        model = self._host.model_status()
        errors: list[PlanError] = []
        if not model.trainable:
            errors.append({"code": ErrorCode.NOT_TRAINABLE, "field": None, "message": model.reason})
        config = None
        try:
            config = self._settings.parse(values)
            plan = make_plan(config, lora_dir=self._host.lora_dir, thorough=thorough)
            self._output_names.refuse_taken(config)
        except Refused as error:
            errors.append(self._describe_error(error, config))
            return {"errors": errors, "warnings": [], "advice": []}
        needed = estimate(config, plan.samples, self._host.loaded_parts(), init_lora=plan.init_lora)
        try:
            check_space(plan.output_file, needed["file_bytes"] or 0)
        except Refused as error:
            errors.append(self._describe_error(error, config))
        warnings = plan.warnings + model_warnings(config, model)
        return {
            **count_pictures(plan),
            "buckets": plan.bucket_counts(),
            "steps": plan.schedule.total_steps,
            "epochs": plan.epochs,
            **needed,
            "estimated_seconds": self._estimated_seconds(config, plan.schedule.total_steps, model),
            "warnings": warnings,
            "advice": advice_in(warnings),
            "errors": errors,
            "output_file": str(plan.output_file),
            "lora_tag": plan.lora_tag,
        }

    def _describe_error(self, error: Refused, config: TrainConfig | None) -> PlanError:
        remedies: list[RemedyView] = error.details.get("remedies", [])
        if config and error.code == ErrorCode.NAME_TAKEN:
            name = self._output_names.free(config)
            remedies = [Remedy(f"Call it {name}", {"output_name": name}).described()]
        described: PlanError = {
            "code": error.code,
            "field": error.field,
            "message": error.message,
        }
        if remedies:
            described["remedies"] = remedies
        return described

    def _estimated_seconds(
        self, config: TrainConfig, steps: int, model: ModelStatus
    ) -> float | None:
        """Estimate from the last finished job that was as fast to compute, if there is one."""
        for row in self._store.newest(kind=JobKind.TRAINING):
            seconds_per_step = row.progress.get("seconds_per_step")
            if (
                seconds_per_step
                and row.state == JobState.FINISHED
                and _is_same_model(row, model)
                and _is_same_speed(row, config)
            ):
                return seconds_per_step * steps
        return None


def count_pictures(plan: Plan) -> PictureCounts:
    """Return how many pictures a run trains on, regularises with and validates on, and in which
    resolutions.
    """
    return {
        "pictures": plan.count("train"),
        "regularisation_pictures": plan.count("regularisation"),
        "validation_pictures": plan.count("validation"),
        "resolutions": plan.resolutions,
    }


def model_kind(model: ModelStatus) -> str:
    """Return what decides, of a checkpoint, how long a step takes."""
    return f"{model.family} {model.variant} {model.size_px}" if model.trainable else ""


def _is_same_model(row: JobRow, model: ModelStatus) -> bool:
    if row.for_kind:
        return row.for_kind == model_kind(model)
    return row.for_checkpoint == model.checkpoint  # jobs of older versions


def _is_same_speed(row: JobRow, config: TrainConfig) -> bool:
    before = {**_IN_OLDER_JOBS, **row.config}
    return all(before.get(name) == getattr(config, name) for name in _DECIDE_SPEED)
