"""What a run will do, worked out before the model is touched: pictures, captions, buckets, steps,
where the file goes.

`make_plan` raises `Refused` for whatever would make the run fail; what a user should only know
becomes a warning.
"""

import contextlib
import dataclasses
import glob
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from ..base.errors import Refused
from ..base.paths import numbered
from ..base.tensor_files import read_header
from ..dataset.buckets import Bucket, assign_bucket, batches_per_epoch
from ..dataset.caption_augmentation import without_choices
from ..dataset.captions import lines_of, with_trigger
from ..dataset.images import placement
from ..dataset.masks import learns_everywhere
from ..dataset.scan import Picture, Problem
from ..dataset.selection import Selection, each_resolution, select
from ..lora.adapters import count_parameters
from ..lora.blocks import BASE, PRESETS, BlockRank, read_blocks
from ..lora.load import LoraFile, find_lora, inspect_lora
from ..lora.target_layers import assign_ranks
from ..settings.config import TrainConfig, check_name
from ..training.encoded_dataset import JITTERED
from ..training.loop import Schedule
from ..training.optimizers import check_rates, check_settings
from ..training.optimizers import remarks_on as optimizer_remarks
from ..training.parameter_groups import groups_without_model, rates_of
from .plan_warnings import remarks_on, remarks_on_batches
from .step_options import (
    check_choices,
    form_of,
    layer_choice,
    rate_choice,
    resolutions_of,
    variation_of,
)

MOST_STEPS = 1_000_000
LARGE_CACHE_BYTES = 4_000_000_000
CAPTION_BYTES, WORDS_AT_ONCE = (
    77 * 2048 * 4,
    55,
)  # of 75 tokens, with SDXL in float32; SD1 takes a third
LORA_ENDINGS = (".safetensors", ".pt", ".ckpt")
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw8bit": 2,
    "lion": 4,
    "adafactor": 1,
    "prodigy": 16,
    "dadaptation": 12,
    "schedulefree": 8,
}  # for each parameter, about


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a run that does not need the model. Lists have one entry for each picture:
    those for training, then for regularisation, then for validation. `roles` say which ("train",
    "regularisation", "validation"); `schedule.repeats` is 0 for validation. With several
    resolutions, pictures that are learned have an entry for each of them; `resolutions` say which.

    `captions` are as they are shown, or where captions vary, what they are drawn from. `masks` hold
    the mask files that are used, by picture.
    """

    pictures: list[Picture]
    captions: list[str]
    buckets: list[Bucket]
    roles: list[str]
    problems: list[Problem]
    schedule: Schedule
    epochs: int
    warnings: list[str]
    output_file: Path
    lora_tag: str
    init_lora: LoraFile | None = None
    masks: dict[Path, Path] = dataclasses.field(default_factory=dict)
    resolutions: list[int] = dataclasses.field(default_factory=list)

    def count(self, role: str) -> int:
        """Return how many pictures have a role; one that is learned in several resolutions is
        one.
        """
        return len(
            {
                picture.path
                for picture, of in zip(self.pictures, self.roles, strict=True)
                if of == role
            }
        )

    def bucket_counts(self) -> list[dict[str, int]]:
        """The buckets in use, most used first, each `{width, height, pictures}`."""
        return [
            dict(width=bucket.width, height=bucket.height, pictures=count)
            for bucket, count in Counter(self.buckets).most_common()
        ]


def make_plan(
    config: TrainConfig, *, lora_dir: Path, thorough: bool = True, session_id: float | None = None
) -> Plan:
    """Work a run out; `config.train_data_dir` must be a folder here. Raises `Refused` with the
    field to mend.

    `session_id` is that of a run which goes on: files that it has saved already are in nobody's
    way. Without `thorough` pictures and masks that were never decoded count as good by their
    headers, so that a page need not wait.
    """
    if not config.train_data_dir:
        raise Refused(
            "No pictures yet: drop some into the page, or give the folder they are in.",
            field="train_data_dir",
            code="no_pictures",
        )
    output_file = plan_output(config, lora_dir, session_id=session_id)
    check_choices(config)
    check_settings(config.optimizer, config.optimizer_args)
    init_lora = (
        inspect_lora(find_lora(config.init_lora, lora_dir))
        if config.init_lora and session_id is None
        else None
    )  # a state has all of it
    if session_id is None and (parts := _learning_rates(config, init_lora)):
        choice = rate_choice(config)
        groups = groups_without_model(
            parts, choice, has_halves=(init_lora.kind if init_lora else config.lora_type) == "lora"
        )
        check_rates(config.optimizer, rates_of(groups, choice))
    selection = select(config, thorough=thorough)
    captions = _captions(config, selection)
    resolutions = resolutions_of(config)
    numbers, sides = zip(*each_resolution(selection.roles, resolutions), strict=True)
    pictures, roles, repeats = (
        [each[at] for at in numbers]
        for each in (selection.pictures, selection.roles, selection.repeats)
    )
    buckets = [
        bucket_of(picture.width, picture.height, config, resolution=side)
        for picture, side in zip(pictures, sides, strict=True)
    ]
    schedule = _schedule(config, buckets, repeats)
    warnings = (
        remarks_on(config, selection, captions, total_steps=schedule.total_steps)
        + _elsewhere(output_file, lora_dir, session_id)
        + _taken_over(init_lora, config)
    )
    plan = Plan(
        pictures,
        [captions[at] for at in numbers],
        buckets,
        roles,
        selection.problems,
        schedule,
        -(-schedule.total_steps // schedule.steps_per_epoch),
        warnings,
        output_file,
        tag_of(output_file.stem, config.preferred_weight),
        init_lora,
        selection.masks,
        list(sides),
    )
    warnings += _sizes(plan, config, resolutions)
    warnings += _large_cache(plan, config) + optimizer_remarks(
        config.optimizer,
        learning_rates=_learning_rates(config, init_lora),
        scheduler=config.scheduler,
    )
    learned = {
        picture.path
        for picture, role in zip(plan.pictures, plan.roles, strict=True)
        if role == "train"
    }
    warnings += remarks_on_batches(
        config,
        plan.buckets,
        schedule.repeats,
        pictures=len(learned),
        total_steps=schedule.total_steps,
        steps_per_epoch=schedule.steps_per_epoch,
    )
    return plan


def bucket_of(
    width: int, height: int, config: TrainConfig, *, resolution: int | None = None
) -> Bucket:
    """Return the bucket of a picture of this upright size, in `resolution` or the settings' main
    one.
    """
    side = resolution or config.resolution
    return assign_bucket(
        width,
        height,
        resolution=side,
        step=min(config.bucket_step, side // 8 * 8),
        enable_bucket=config.enable_bucket,
        shortest=config.bucket_min,
        longest=config.bucket_max,
        no_upscale=config.bucket_no_upscale,
    )


def _sizes(plan: Plan, config: TrainConfig, resolutions: list[int]) -> list[str]:
    """Say in which sizes pictures are learned, where that is not the usual."""
    if len(resolutions) == 1:
        return (
            [
                f"The resolution is {resolutions[0]} px, the side of a square. Two numbers such as "
                "512x768, or 512,768 in a file of kohya's, are read as a "
                "rectangle of that area; to learn in two sizes, write one into More resolutions."
            ]
            if resolutions[0] % 8
            else []
        )
    also = (
        " The pictures for validation are measured in the first."
        if "validation" in plan.roles
        else ""
    )
    ours = [
        (picture.path, bucket.width, bucket.height)
        for picture, bucket, role in zip(plan.pictures, plan.buckets, plan.roles, strict=True)
        if role == "train"
    ]
    alike = sum(count - 1 for count in Counter(ours).values())
    why = (
        "small pictures are not enlarged"
        if config.bucket_no_upscale
        else f"sides are multiples of the bucket step, {config.bucket_step} px"
    )
    small = (
        f" Of them, {alike} are of the same size as in another resolution: {why}." if alike else ""
    )
    return [
        f"Each picture is learned in {_listed(resolutions)} px: {plan.count('train')} pictures"
        f" count as {len(ours)}.{small}{also}"
    ]


def _listed(numbers: list[int]) -> str:
    return " and ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])])


def _captions(config: TrainConfig, selection: Selection) -> list[str]:
    """Captions with the trigger word, except for regularisation; those that do not vary in the form
    in which they are shown.
    """
    variation = variation_of(config)
    used = [
        "\n".join(lines_of(picture.caption, config.caption_lines)) for picture in selection.pictures
    ]
    certain = without_choices if config.caption_wildcards else str
    captions = [
        (
            caption
            if role == "regularisation"
            else with_trigger(caption, config.trigger_word, certain=certain)
        )
        for caption, role in zip(used, selection.roles, strict=True)
    ]
    return [
        caption if variation.varies and role != "validation" else variation.plain(caption)
        for caption, role in zip(captions, selection.roles, strict=True)
    ]


def plan_output(config: TrainConfig, lora_dir: Path, *, session_id: float | None = None) -> Path:
    """Return where the LoRA will be; raises `Refused` for a name that is missing, impossible or
    taken, and a folder that is not writable.
    """
    if not config.output_name:
        raise Refused(
            "Give the LoRA a name: it becomes the file name and is written in prompts.",
            field="output_name",
            code="no_name",
        )
    folder = Path(config.output_dir or lora_dir)
    path = folder / f"{check_name(config.output_name)}.safetensors"
    _refuse_clash(config, path, lora_dir, session_id)
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        raise Refused(
            f"Nothing can be saved in {folder}: "
            + ("no permission." if existing.is_dir() else f"{existing} is not a folder."),
            field="output_dir",
            code="cannot_save",
        )
    return path


def _refuse_clash(
    config: TrainConfig, path: Path, lora_dir: Path, session_id: float | None
) -> None:
    """Raise `Refused` for files that are in the way of a LoRA. Those that a run which goes on has
    saved itself are not, and its snapshots find a free name.
    """

    def is_others(file: Path) -> bool:
        return session_id is None or session_id_of(file) != session_id

    rename = (
        f"call the new one {free_name(path)}"
        if session_id is None
        else "move it away: a run keeps its name to its end"
    )
    if path.exists() and not config.overwrite and is_others(path):
        raise Refused(
            f"A LoRA called {config.output_name} exists"
            f" already{'' if session_id is None else ', and is not of this run'}. Replace it, or"
            f" {rename}.",
            field="output_name",
            code="name_taken",
        )
    if clash := next(filter(is_others, _names_elsewhere(path, lora_dir)), None):
        raise Refused(
            f"There is {clash} already, which {path.stem} would be mixed up with."
            f" {rename[0].upper()}{rename[1:]}.",
            field="output_name",
            code="name_taken",
        )
    saves = config.save_steps or config.save_every_n_epochs
    if (
        session_id is None
        and saves
        and not config.overwrite
        and (clash := next(_snapshots_there(path), None))
    ):
        raise Refused(
            f"There is {clash} already, which {path.stem} would be mixed up with. Replace it, or"
            f" {rename}.",
            field="output_name",
            code="name_taken",
        )


def session_id_of(path: Path) -> float | None:
    """Return when the run that saved a LoRA began, which is the run's name for itself; None for a
    file that says nothing of it.
    """
    try:
        return float(read_header(path).metadata["ss_training_started_at"])
    except (OSError, KeyError, ValueError):
        return None


def free_name(path: Path) -> str:
    """Return the stem with the first number that is not taken: `name-2`, `name-3`, …"""
    return next(other for other in numbered(path) if not other.exists()).stem


def _names_elsewhere(path: Path, lora_dir: Path) -> Iterator[Path]:
    """Find LoRAs of the same name in other folders that the WebUI looks through: a tag could mean
    either.
    """
    for folder, _, names in os.walk(lora_dir, followlinks=True):
        for name in names:
            other = Path(folder, name)
            if (
                other.stem == path.stem
                and other.suffix.lower() in LORA_ENDINGS
                and not _is_same_file(other, path)
            ):
                yield other


def _is_same_file(one: Path, other: Path) -> bool:
    """Tell whether two spellings are one file, by way of links or of a disk that knows no upper and
    lower case.
    """
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return one.name == other.name and one.parent.resolve() == other.parent.resolve()


def _snapshots_there(path: Path) -> Iterator[Path]:
    return path.parent.glob(f"{glob.escape(path.stem)}-[0-9][0-9][0-9][0-9][0-9][0-9].safetensors")


def tag_of(name: str, weight: float) -> str:
    return f"<lora:{name}:{weight:g}>"


def estimate(
    plan: Plan, config: TrainConfig, parts: torch.nn.ModuleDict | None
) -> dict[str, int | None]:
    """Return trainable parameters, bytes that they and the optimizer take, and bytes of the file;
    None while no model is loaded. `cache_bytes` of main memory are what the encoded pictures take.

    Weight and gradient are fp32, and so is most of what optimizers keep. Raises `Refused` for
    blocks that the model lacks.
    """
    cache = dict(cache_bytes=cache_bytes(plan, config))
    if parts is None:
        return dict(trainable_parameters=None, estimated_memory_bytes=None, file_bytes=None) | cache
    parameters = (
        count_parameters(parts, assign_ranks(parts, layer_choice(config)), form_of(config))
        if plan.init_lora is None
        else plan.init_lora.parameters
    )
    each = 8 + OPTIMIZER_BYTES.get(config.optimizer, 8) + 4 * (config.ema_decay > 0)
    return (
        dict(
            trainable_parameters=parameters,
            estimated_memory_bytes=each * parameters,
            file_bytes=parameters * (4 if config.save_precision == "fp32" else 2),
        )
        | cache
    )


def cache_bytes(plan: Plan, config: TrainConfig) -> int:
    """Return what `core.cache` will keep in main memory: float32 latents and masks in all their
    variants, and captions, about, where they are encoded once.
    """
    variants = (JITTERED if config.color_jitter else 1) * (2 if config.mirror else 1)
    taken = 0
    for picture, bucket, role in zip(plan.pictures, plan.buckets, plan.roles, strict=True):
        varies = role != "validation"
        place = placement(
            picture.width, picture.height, bucket, whole=config.random_crop and varies
        )
        has_mask = picture.path in plan.masks or (
            config.masked_loss == "alpha" and not learns_everywhere(picture)
        )
        taken += (
            4
            * (4 + has_mask)
            * (place.width // 8)
            * (place.height // 8)
            * (variants if varies else 1)
        )
    if variation_of(config).varies or "text_encoder" in _learning_rates(config, plan.init_lora):
        return taken
    return taken + CAPTION_BYTES * sum(
        max(1, math.ceil(len(caption.split()) / WORDS_AT_ONCE)) for caption in set(plan.captions)
    )


def _large_cache(plan: Plan, config: TrainConfig) -> list[str]:
    needed = cache_bytes(plan, config)
    if needed <= LARGE_CACHE_BYTES:
        return []
    causes = [
        cause
        for cause, on in (
            ("Mirror doubles it", config.mirror),
            ("Colour jitter makes it fourfold", config.color_jitter),
            ("each picture is kept in every resolution", len(set(plan.resolutions)) > 1),
        )
        if on
    ]
    return [
        f"The encoded pictures will take about {needed / 1e9:.1f} GB of main memory"
        + (f" ({', '.join(causes)})." if causes else ".")
    ]


def check_space(path: Path, needed_bytes: int) -> None:
    """Raise `Refused` when the disk has not room for a file and the temporary copy beside it."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < 2 * needed_bytes + 10_000_000:
        raise Refused(
            f"The disk of {path.parent} has {free_bytes / 1e6:.0f} MB left; the LoRA needs"
            f" {2 * needed_bytes / 1e6 + 10:.0f} MB. Free some space.",
            field="output_dir",
            code="disk_full",
        )


def _schedule(config: TrainConfig, buckets: list[Bucket], repeats: list[int]) -> Schedule:
    batches = batches_per_epoch(buckets, repeats, config.batch_size)
    steps_per_epoch = -(-batches // config.gradient_accumulation_steps)
    total = config.max_train_steps or steps_per_epoch * config.epochs
    if total > MOST_STEPS:
        raise Refused(
            f"{total:,} steps would never end; at most {MOST_STEPS:,}. Lower the epochs or the"
            " repeats.",
            field="epochs",
            code="bad_value",
        )
    return Schedule(
        total,
        steps_per_epoch,
        config.batch_size,
        config.gradient_accumulation_steps,
        tuple(repeats),
        config.seed,
    )


def _elsewhere(output_file: Path, lora_dir: Path, session_id: float | None) -> list[str]:
    if session_id is not None and (moved := next(_names_elsewhere(output_file, lora_dir), None)):
        return [
            f"{moved} is an earlier file of this run, and {output_file.stem} in a prompt may mean"
            f" either: move it out of {lora_dir}."
        ]
    if output_file.resolve().is_relative_to(lora_dir.resolve()):
        return []
    return [
        f"{output_file.parent} is outside the LoRA folder {lora_dir}: the tag works when the file"
        " is copied there."
    ]


def _learning_rates(config: TrainConfig, found: LoraFile | None) -> dict[str, float]:
    """Return the learning rates of what learns, as far as that can be told without the model: a
    LoRA that is gone on from decides, or switches and blocks.
    """
    if found:
        learns = found.text_encoder_layers < len(found.ranks), found.text_encoder_layers > 0
    else:
        blocks = _blocks(config.lora_blocks)
        base, of_unet = blocks.pop(BASE, BlockRank()), blocks.values()
        learns = (
            config.train_unet and (not of_unet or any(block.rank != 0 for block in of_unet)),
            config.train_text_encoder and base.rank != 0,
        )
    rates = {"unet": config.learning_rate, "text_encoder": config.text_encoder_lr}
    return {
        group: rate for (group, rate), chosen in zip(rates.items(), learns, strict=True) if chosen
    }


def _blocks(text: str) -> dict[str, BlockRank]:
    """Read a list of blocks for whichever model has them; nothing where none has: that is refused
    once the model is known.
    """
    for levels in PRESETS:
        with contextlib.suppress(Refused):
            return read_blocks(text, levels)
    return {}


def _taken_over(found: LoraFile | None, config: TrainConfig) -> list[str]:
    if found is None:
        return []
    remarks = [
        f"Going on from {found.path.name}: its rank {found.rank}, alpha {found.alpha:g} and layers"
        " are used, whatever the settings say."
    ]
    if found.kind != config.lora_type:
        remarks.append(
            f"{found.path.name} is a {found.kind}, and so will this be; Kind says"
            f" {config.lora_type}."
        )
    if found.kind != "lora" and config.loraplus_lr_ratio != 1:
        remarks.append(
            f"{found.path.name} is a {found.kind}, which has no halves: LoRA+ ratio is without"
            " effect."
        )
    if found.is_dora != config.use_dora:
        remarks.append(
            f"{found.path.name} is {'a' if found.is_dora else 'no'} DoRA, and so will this be; DoRA"
            f" is switched {'on' if config.use_dora else 'off'}."
        )
    if found.text_encoder_layers and not config.train_text_encoder and config.text_encoder_lr:
        remarks.append(
            f"{found.path.name} has layers of the text encoder, so that learns too, at"
            f" {config.text_encoder_lr:g}; 0 as its learning rate keeps it as it is."
        )
    if not found.text_encoder_layers and config.train_text_encoder:
        remarks.append(
            f"{found.path.name} has no layers of the text encoder, so that does not learn."
        )
    if found.text_encoder_layers < len(found.ranks) and not config.train_unet:
        remarks.append(
            f"{found.path.name} has layers of the UNet, so that learns too, although it is switched"
            " off."
        )
    if found.text_encoder_layers == len(found.ranks) and config.train_unet:
        remarks.append(f"{found.path.name} has no layers of the UNet, so that does not learn.")
    return remarks
