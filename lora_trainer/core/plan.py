"""What a run will do, worked out before the model is touched: pictures, captions, buckets, steps, where the file goes.

`make_plan` raises `Refused` for whatever would make the run fail; what a user should only know becomes a warning.
"""
import dataclasses
import glob
import os
import shutil
from collections import Counter
from pathlib import Path

import safetensors
import torch

from .adapters import count_parameters
from .captions import with_trigger
from .config import TrainConfig, check_name
from .dataset import Bucket, Picture, Problem, assign_bucket, batches_per_epoch, scan
from .errors import Refused
from .paths import numbered
from .starting import FoundLora, find_lora, look_into
from .trainer import Schedule

FEW_PICTURES, LONG_CAPTION_WORDS, MOST_STEPS = 5, 55, 1_000_000
LORA_ENDINGS = (".safetensors", ".pt", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a run that does not need the model. Lists have one entry for each picture."""
    pictures: list[Picture]
    captions: list[str]
    buckets: list[Bucket]
    problems: list[Problem]
    schedule: Schedule
    epochs: int
    warnings: list[str]
    output_file: Path
    lora_tag: str
    init_lora: FoundLora | None = None

    def bucket_counts(self) -> list[dict[str, int]]:
        """The buckets in use, most used first, each `{width, height, pictures}`."""
        return [dict(width=bucket.width, height=bucket.height, pictures=count) for bucket, count in Counter(self.buckets).most_common()]


def make_plan(config: TrainConfig, *, lora_dir: Path, thorough: bool = True, session: float | None = None) -> Plan:
    """Work a run out; `config.train_data_dir` must be a folder here. Raises `Refused` with the field to mend.

    `session` is that of a run which goes on: files that it has saved already are in nobody's way. Without `thorough` pictures that were never decoded count as good by their headers, so that a page need not wait.
    """
    if not config.train_data_dir:
        raise Refused("No pictures yet: drop some into the page, or give the folder they are in.", field="train_data_dir", code="no_pictures")
    output_file = plan_output(config, lora_dir, session=session)
    init_lora = look_into(find_lora(config.init_lora, lora_dir)) if config.init_lora and session is None else None      # a state has all of it
    pictures, problems = scan(Path(config.train_data_dir), metadata_path=config.metadata_path, repeats=config.repeats, thorough=thorough)
    if not pictures:
        raise Refused(_no_pictures(config.train_data_dir, problems), field="train_data_dir", code="no_pictures")
    buckets = [assign_bucket(picture.width, picture.height, resolution=config.resolution, step=min(config.bucket_step, config.resolution // 8 * 8),
                             enable_bucket=config.enable_bucket) for picture in pictures]
    schedule = _schedule(config, buckets, [picture.repeats for picture in pictures])
    captions = [with_trigger(picture.caption, config.trigger_word) for picture in pictures]
    return Plan(pictures, captions, buckets, problems, schedule, -(-schedule.total_steps // schedule.steps_per_epoch),
                _warnings(config, pictures, captions, problems) + _elsewhere(output_file, lora_dir) + _taken_over(init_lora), output_file,
                tag_of(output_file.stem, config.preferred_weight), init_lora)


def plan_output(config: TrainConfig, lora_dir: Path, *, session: float | None = None) -> Path:
    """Return where the LoRA will be; raises `Refused` for a name that is missing, impossible or taken, and a folder that is not writable."""
    if not config.output_name:
        raise Refused("Give the LoRA a name: it becomes the file name and is written in prompts.", field="output_name", code="no_name")
    folder = Path(config.output_dir or lora_dir)
    path = folder / f"{check_name(config.output_name)}.safetensors"
    mine = session is not None and session_of(path) == session
    if path.exists() and not config.overwrite and not mine:
        raise Refused(f"A LoRA called {config.output_name} exists already. Replace it, or call the new one {free_name(path)}.", field="output_name",
                      code="name_taken")
    if clash := _name_elsewhere(path, lora_dir) or (None if config.overwrite or mine or not config.save_steps else _snapshot_there(path)):
        raise Refused(f"There is {clash} already, which {path.stem} would be mixed up with. Call the new one {free_name(path)}.", field="output_name",
                      code="name_taken")
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        raise Refused(f"Nothing can be saved in {folder}: " + ("no permission." if existing.is_dir() else f"{existing} is not a folder."),
                      field="output_dir", code="cannot_save")
    return path


def session_of(path: Path) -> float | None:
    """Return when the run that saved a LoRA began, which is the run's name for itself; None for a file that says nothing of it."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return float((file.metadata() or {})["ss_training_started_at"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError):
        return None


def free_name(path: Path) -> str:
    """Return the stem with the first number that is not taken: `name-2`, `name-3`, …"""
    return next(other for other in numbered(path) if not other.exists()).stem


def _name_elsewhere(path: Path, lora_dir: Path) -> Path | None:
    """Find a LoRA of the same name in another folder that the WebUI looks through: a tag could mean either."""
    for folder, _, names in os.walk(lora_dir, followlinks=True):
        for name in names:
            if Path(name).stem == path.stem and Path(name).suffix.lower() in LORA_ENDINGS and Path(folder, name) != path:
                return Path(folder, name)
    return None


def _snapshot_there(path: Path) -> Path | None:
    return next(iter(path.parent.glob(f"{glob.escape(path.stem)}-[0-9][0-9][0-9][0-9][0-9][0-9].safetensors")), None)


def tag_of(name: str, weight: float) -> str:
    return f"<lora:{name}:{weight:g}>"


def estimate(plan: Plan, config: TrainConfig, unet: torch.nn.Module | None) -> dict[str, int | None]:
    """Return trainable parameters, bytes that they and the optimizer take, and bytes of the file; None while no model is loaded.

    Weight, gradient and AdamW's two moments are fp32: 16 bytes each.
    """
    if unet is None:
        return dict(trainable_parameters=None, estimated_memory_bytes=None, file_bytes=None)
    found = plan.init_lora
    parameters = (count_parameters(unet, targets=config.lora_targets, rank=config.lora_rank) if found is None else found.parameters)
    return dict(trainable_parameters=parameters, estimated_memory_bytes=16 * parameters, file_bytes=parameters * (4 if config.save_precision == "fp32" else 2))


def check_space(path: Path, needed_bytes: int) -> None:
    """Raise `Refused` when the disk has not room for a file and the temporary copy beside it."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < 2 * needed_bytes + 10_000_000:
        raise Refused(f"The disk of {path.parent} has {free_bytes / 1e6:.0f} MB left; the LoRA needs {2 * needed_bytes / 1e6 + 10:.0f} MB. Free some space.",
                      field="output_dir", code="disk_full")


def _schedule(config: TrainConfig, buckets: list[Bucket], repeats: list[int]) -> Schedule:
    batches = batches_per_epoch(buckets, repeats, config.batch_size)
    steps_per_epoch = -(-batches // config.gradient_accumulation_steps)
    total = config.max_train_steps or steps_per_epoch * config.epochs
    if total > MOST_STEPS:
        raise Refused(f"{total:,} steps would never end; at most {MOST_STEPS:,}. Lower the epochs or the repeats.", field="epochs", code="bad_value")
    return Schedule(total, steps_per_epoch, config.batch_size, config.gradient_accumulation_steps, tuple(repeats), config.seed)


def _elsewhere(output_file: Path, lora_dir: Path) -> list[str]:
    if output_file.resolve().is_relative_to(lora_dir.resolve()):
        return []
    return [f"{output_file.parent} is outside the LoRA folder {lora_dir}: the tag works when the file is copied there."]


def _taken_over(found: FoundLora | None) -> list[str]:
    if found is None:
        return []
    remarks = [f"Going on from {found.path.name}: its rank {found.rank}, alpha {found.alpha:g} and layers are used, whatever the settings say."]
    if found.text_encoder_layers:
        remarks.append(f"{found.path.name} also changes the text encoder; that part is left out, for now only the UNet is trained.")
    return remarks


def _no_pictures(folder: str, problems: list[Problem]) -> str:
    if problems:
        return f"None of the {len(problems)} pictures in {folder} can be used. The first: {problems[0].reason}"
    return f"There are no pictures in {folder}. Put PNG, JPEG or WebP files in it."


def _warnings(config: TrainConfig, pictures: list[Picture], captions: list[str], problems: list[Problem]) -> list[str]:
    small = [picture for picture in pictures if picture.width * picture.height < 0.8 * config.resolution ** 2]
    long = [(picture, len(caption.split())) for picture, caption in zip(pictures, captions) if len(caption.split()) > LONG_CAPTION_WORDS]
    bare = [picture for picture, caption in zip(pictures, captions) if not caption]
    found = [problem.reason for problem in problems[:5]]
    if len(problems) > 5:
        found.append(f"{len(problems) - 5} more files cannot be used.")
    if len(pictures) < FEW_PICTURES:
        found.append(f"Only {len(pictures)} picture{'s' * (len(pictures) > 1)}: the LoRA may learn {'it' if len(pictures) == 1 else 'them'} by heart. "
                     "15 to 50 work best.")
    if bare:
        found.append(f"{len(bare)} of {len(pictures)} pictures have no caption and there is no trigger word: nothing will call what they teach.")
    if long:
        found.append(f"The caption of {long[0][0].path.name} has {long[0][1]} words; only the first 75 tokens, about {LONG_CAPTION_WORDS} words, count.")
    if small:
        found.append(f"{len(small)} pictures are smaller than {config.resolution}x{config.resolution} and will be enlarged, which blurs them.")
    found += [f"{picture.path.name}: {remark}." for picture in pictures for remark in picture.warnings if remark != "no caption"][:5]
    return found
