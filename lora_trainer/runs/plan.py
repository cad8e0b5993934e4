"""What a run will do, worked out before the model is touched: its samples, steps and output file.

`make_plan` raises `Refused` for whatever would make the run fail; what a user should only know
becomes a warning. selection -> samples (this module) -> training.encoded_dataset.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from ..base.errors import ErrorCode, Refused
from ..dataset.buckets import bucket_for
from ..dataset.caption_augmentation import without_choices
from ..dataset.captions import lines_of, with_trigger
from ..dataset.sample import ROLES, Picture, Role, Sample
from ..dataset.scan import Problem
from ..dataset.selection import Selection, select
from ..lora.load import LoraFile, find_lora, inspect_lora
from ..settings.config import TrainConfig
from ..settings.rules import check_contradictions, resolutions_of
from ..training.batches import batches_per_epoch
from ..training.learning_rates import check_rates, rate_warnings
from ..training.optimizers import check_without_step
from ..training.parameter_groups import groups_without_model, rates_of
from ..training.training_data import StepSchedule
from . import picture_warnings, plan_warnings
from .memory import cache_bytes
from .output_files import plan_output, tag_of
from .step_options import caption_augmentation, rate_choice
from .trained_parts import learning_rates_by_part

MOST_STEPS = 1_000_000


class BucketCount(TypedDict):
    """How many samples a bucket has, and its size in pixels."""

    width: int
    height: int
    pictures: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a run that does not need the model.

    `samples` are those for training, then for regularisation, then for validation; with several
    resolutions, each role's in the first resolution, then in the next.
    """

    samples: list[Sample]
    problems: list[Problem]
    schedule: StepSchedule
    epochs: int
    warnings: list[str]
    output_file: Path
    lora_tag: str
    init_lora: LoraFile | None = None

    @property
    def resolutions(self) -> list[int]:
        """The resolutions in use, in pixels, the main one first."""
        return list(dict.fromkeys(sample.resolution_px for sample in self.samples))

    def count(self, role: Role) -> int:
        """Count the pictures of a role; one that is learned in several resolutions is one."""
        return count_pictures(self.samples, role)

    def bucket_counts(self) -> list[BucketCount]:
        """Return the buckets in use, most used first."""
        counts = Counter(sample.bucket for sample in self.samples)
        return [
            BucketCount(width=bucket.width, height=bucket.height, pictures=count)
            for bucket, count in counts.most_common()
        ]


def make_plan(
    config: TrainConfig, *, lora_dir: Path, thorough: bool = True, session_id: float | None = None
) -> Plan:
    """Work out a run; raises `Refused` with the setting to mend.

    `config.train_data_dir` must be a folder here, or a file of concepts. `session_id` is that of a
    run which is resumed: files that it has saved itself are not in its way. Without `thorough`
    pictures and masks that were never decoded count as good by their headers, so that a page need
    not wait.
    """
    if not config.train_data_dir:
        raise Refused(
            "No pictures yet: drop some into the page, or give the folder they are in.",
            field="train_data_dir",
            code=ErrorCode.NO_PICTURES,
        )
    output_file = plan_output(config, lora_dir, session_id=session_id)
    check_contradictions(config)
    check_without_step(config.optimizer, config.optimizer_args)
    init_lora = None
    is_resumed = session_id is not None
    if config.init_lora and not is_resumed:  # a training state has all of its layers
        init_lora = inspect_lora(find_lora(config.init_lora, lora_dir))
    if not is_resumed:
        _check_learning_rates(config, init_lora)
    selection = select(config, thorough=thorough)
    samples = make_samples(config, selection)
    schedule = _schedule(config, samples)
    return Plan(
        samples,
        selection.problems,
        schedule,
        epochs=-(-schedule.total_steps // schedule.steps_per_epoch),
        warnings=[
            *_data_warnings(config, selection, samples, schedule),
            *plan_warnings.output_warnings(output_file, lora_dir, is_resumed=is_resumed),
            *plan_warnings.init_lora_warnings(config, init_lora),
            *_training_warnings(config, samples, schedule, init_lora),
        ],
        output_file=output_file,
        lora_tag=tag_of(output_file.stem, config.preferred_weight),
        init_lora=init_lora,
    )


def count_pictures(samples: Sequence[Sample], role: Role) -> int:
    """Count the different pictures of a role."""
    return len({sample.picture.path for sample in samples if sample.role == role})


def _check_learning_rates(config: TrainConfig, init_lora: LoraFile | None) -> None:
    """Raise `Refused` for learning rates that the optimizer cannot use."""
    parts = learning_rates_by_part(config, init_lora)
    if not parts:  # which is refused once the model's layers are known
        return
    choice = rate_choice(config)
    kind = init_lora.kind if init_lora else config.lora_type
    groups = groups_without_model(parts, choice, has_halves=kind == "lora")
    check_rates(config.optimizer, rates_of(groups, choice))


def _schedule(config: TrainConfig, samples: Sequence[Sample]) -> StepSchedule:
    repeats = [sample.repeats for sample in samples]
    buckets = [sample.bucket for sample in samples]
    batches = batches_per_epoch(buckets, repeats, batch_size=config.batch_size)
    steps_per_epoch = -(-batches // config.gradient_accumulation_steps)
    total = config.max_train_steps or steps_per_epoch * config.epochs
    if total > MOST_STEPS:
        raise Refused(
            f"{total:,} steps would never end; at most {MOST_STEPS:,}. Lower the epochs or the"
            " repeats.",
            field="epochs",
            code=ErrorCode.BAD_VALUE,
        )
    return StepSchedule(
        total,
        steps_per_epoch,
        config.batch_size,
        config.gradient_accumulation_steps,
        config.seed,
    )


# --- Samples --------------------------------------------------------------------------------------


def make_samples(config: TrainConfig, selection: Selection) -> list[Sample]:
    """Make the samples of a run: role by role, each in the first resolution, then in the next.

    Validation is in the first alone, so that its loss can be compared from run to run.
    """
    samples = []
    for role in ROLES:
        resolutions = resolutions_of(config)
        if role == "validation":
            resolutions = resolutions[:1]
        pictures = selection.of(role)
        captions = [_caption(config, picture, role) for picture in pictures]
        for resolution in resolutions:
            for picture, caption in zip(pictures, captions, strict=True):
                sample = Sample(
                    picture,
                    caption,
                    bucket_for(picture.width, picture.height, config, resolution=resolution),
                    role,
                    repeats=0 if role == "validation" else picture.repeats,
                    loss_weight=config.prior_loss_weight if role == "regularisation" else 1.0,
                    mask=selection.masks.get(picture.path),
                    resolution_px=resolution,
                )
                samples.append(sample)
    return samples


def _caption(config: TrainConfig, picture: Picture, role: Role) -> str:
    """Return a picture's caption with the trigger word, except for regularisation.

    Where captions vary, this is what each step's is drawn from; otherwise it is plain.
    """
    augmentation = caption_augmentation(config)
    caption = "\n".join(lines_of(picture.caption, config.caption_lines))
    if role != "regularisation":
        certain = without_choices if config.caption_wildcards else str
        caption = with_trigger(caption, config.trigger_word, certain=certain)
    if augmentation.varies and role != "validation":
        return caption
    return augmentation.plain(caption)


# --- Warnings, in the order in which they are read ------------------------------------------------


def _data_warnings(
    config: TrainConfig, selection: Selection, samples: Sequence[Sample], schedule: StepSchedule
) -> list[str]:
    pictures = [sample for sample in samples if sample.resolution_px == config.resolution]
    return [
        *picture_warnings.picture_warnings(config, pictures, selection.problems),
        *selection.warnings,
        *picture_warnings.regularisation_warnings(config, pictures),
        *plan_warnings.setting_warnings(config, schedule.total_steps),
        *picture_warnings.file_warnings(config, pictures),
    ]


def _training_warnings(
    config: TrainConfig,
    samples: Sequence[Sample],
    schedule: StepSchedule,
    init_lora: LoraFile | None,
) -> list[str]:
    needed = cache_bytes(config, samples, init_lora=init_lora)
    learning_rates = learning_rates_by_part(config, init_lora)
    return [
        *plan_warnings.resolution_warnings(config, samples),
        *plan_warnings.cache_warnings(config, needed, resolutions=len(resolutions_of(config))),
        *rate_warnings(config.optimizer, learning_rates=learning_rates, scheduler=config.scheduler),
        *plan_warnings.batch_warnings(
            config,
            [sample.bucket for sample in samples],
            [sample.repeats for sample in samples],
            pictures=count_pictures(samples, "train"),
            total_steps=schedule.total_steps,
            steps_per_epoch=schedule.steps_per_epoch,
        ),
    ]
