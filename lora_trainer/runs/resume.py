"""Whether a run can go on where it was: what a state remembers of its run, and what has changed
since.

Some changes make another run of it that is as good (a changed caption); those are refused until the
user says to go on anyway. Others make the state worthless (another base model, other layers); those
are always refused.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..base.contracts import BaseModel
from ..base.errors import Refused, Stopped
from ..base.fingerprint import fingerprint_of_file, fingerprint_of_text
from ..dataset.sample import Sample
from ..settings.config import TrainConfig
from ..training import state_files
from .plan import Plan, make_plan

FREE = frozenset(
    (
        "epochs",
        "max_train_steps",
        "learning_rate",
        "scheduler",
        "lr_warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "save_steps",
        "save_every_n_epochs",
        "keep_snapshots",
        "negative_text",
        "save_state_steps",
        "save_state_minutes",
        "keep_states",
        "preview",
        "sharing",
        "live",
        "when_memory_runs_out",
        "gradient_checkpointing",
        "overwrite",
        "logging_dir",
        "preferred_weight",
        "save_precision",
        "scheduler_cycles",
        "scheduler_power",
        "text_encoder_lr",
        "validate_every",
        "scale_weight_norms",
    )
)
"""Settings that may change in the middle of a run: the user changes them on purpose, and nothing
that was learned is lost.
"""
FIXED = (
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "optimizer",
    "task_type",
    "lora_type",
    "lora_blocks",
    "attention_rank",
    "attention_alpha",
    "feed_forward_rank",
    "feed_forward_alpha",
    "conv_rank",
    "conv_alpha",
    "lokr_factor",
    "rslora",
    "use_dora",
    "train_unet",
    "train_text_encoder",
    "text_encoder_rank",
    "text_encoder_alpha",
    "optimizer_args",
    "ema_decay",
    "loraplus_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
    "block_learning_rates",
)
ELSEWHERE = (
    "prediction_type",
    "zero_terminal_snr",
    "train_data_dir",
    "extra_data_dirs",
    "extra_resolutions",
    "reg_data_dir",
    "validation_split",
    "metadata_path",
    "output_name",
    "output_dir",
    "base_model",
    "init_lora",
    "repeats",
    "trigger_word",
)
"""Settings that are compared by what they lead to: the pictures, the captions, the base model, the
file.
"""


@dataclasses.dataclass(frozen=True)
class Change:
    """Something that is not as it was. `fatal`: the state cannot be gone on from."""

    reason: str
    fatal: bool = False


def state_folder(folder: Path) -> Path:
    """Return where the states of a job are, from the job's folder."""
    return folder / "state"


def state_step(folder: Path) -> int | None:
    """Return the step of the newest state in a job's folder, from the file names alone; None when
    there is none.
    """
    return next(iter(state_files.steps(state_folder(folder))), None)


def run_facts(
    config: TrainConfig, plan: Plan, *, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Describe a run so that `check_resume` can tell later what has changed; reads every picture
    once. Raises OSError, and `Stopped` when told to stop.
    """
    pictures: dict[str, Any] = {}
    contents: dict[Path, str] = {}
    for sample in plan.samples:
        if should_stop():
            raise Stopped
        name = _name(sample.picture.path, config) + _in_size(sample.resolution_px, config)
        pictures[name] = _sample_facts(sample, contents)
    return {
        "version": __version__,
        "torch": torch.__version__,
        "config": config.meant(),
        "total_steps": plan.schedule.total_steps,
        "pictures": pictures,
    }


def model_facts(base_model: BaseModel) -> dict[str, Any]:
    return {
        "name": base_model.name,
        "family": base_model.family,
        "variant": base_model.variant,
        "prediction_type": base_model.prediction_type,
        "zero_terminal_snr": base_model.zero_terminal_snr,
        "sha256": base_model.sha256,
        "fingerprint": base_model.fingerprint,
        "dtype": str(base_model.dtype),
        "encoding": base_model.encoding_key(),
    }


def check_resume(
    config: TrainConfig, lora_dir: Path, folder: Path, *, anyway: bool = False
) -> list[str]:
    """Raise `Refused` (code "cannot_resume") when going on would not be the same run; returns
    remarks on what differs all the same.

    `details` hold `reasons` and `anyway_possible`. With `anyway` only what makes the state
    worthless is refused. Without a state a run begins from its first step, and nothing is compared.
    """
    facts = state_files.latest_facts(state_folder(folder))
    if facts is None:
        return check_readable(folder, found=False, anyway=anyway)
    plan = make_plan(config, lora_dir=lora_dir, session_id=facts.get("session"))
    return judge(compare_runs(facts, run_facts(config, plan)), anyway=anyway)


def check_readable(folder: Path, *, found: bool, anyway: bool) -> list[str]:
    """Refuse to begin a run anew in silence: its states are there, and none can be read."""
    damaged = list(state_folder(folder).glob("step-*")) if not found else []
    return judge(
        (
            [Change("its progress on disk is damaged, so it begins with its first step again")]
            if damaged
            else []
        ),
        anyway=anyway,
    )


def compare_runs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """List what differs in settings, pictures and captions."""
    old, new = (
        {**TrainConfig().to_dict(), **before["config"]},
        now["config"],
    )  # a setting that an earlier version did not have was as it is by default
    changes = [
        Change(f"{name} was {old[name]} and is {new[name]} now", fatal=True)
        for name in FIXED
        if old.get(name) != new.get(name)
    ]
    changes += [
        Change(f"{name} was {old[name]} and is {new[name]} now")
        for name in new
        if name in old and name not in FREE | {*FIXED, *ELSEWHERE} and old[name] != new[name]
    ]
    if new["init_lora"] and new["init_lora"] != old["init_lora"]:
        changes.append(
            Change(
                f"it began from {old['init_lora'] or 'new layers'}, and {new['init_lora']} would"
                " not be used"
            )
        )
    changes += _compare_pictures(before["pictures"], now["pictures"])
    if (before["version"], before["torch"]) != (now["version"], now["torch"]):
        changes.append(
            Change(
                f"it was begun with torch {before['torch']} and Train LoRA {before['version']};"
                f" this is torch {now['torch']} and {now['version']}"
            )
        )
    return changes


def compare_models(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """List what differs in the base model. The file's hash decides where both are known, else the
    weights themselves.
    """
    if before["sha256"] and now["sha256"]:
        differs = before["sha256"] != now["sha256"]
    else:  # the same weights in other numbers have another fingerprint
        differs = before["name"] != now["name"] or (
            before["fingerprint"] != now["fingerprint"] and before["dtype"] == now["dtype"]
        )
    if differs or any(before[name] != now[name] for name in ("family", "variant")):
        return [
            Change(
                (
                    f"it was trained on {before['name']}, and {now['name']} is loaded"
                    if before["name"] != now["name"]
                    else f"the checkpoint {now['name']} has other weights than before"
                ),
                fatal=True,
            )
        ]
    if before["prediction_type"] != now["prediction_type"]:
        return [
            Change(
                f"the model was taken to predict {before['prediction_type']} and is taken to"
                f" predict {now['prediction_type']} now",
                fatal=True,
            )
        ]
    return [
        Change(
            f"the {what} was {before[name]} and is {now[name]} now",
            fatal=name == "zero_terminal_snr",
        )
        for name, what in (
            ("zero_terminal_snr", "zero terminal SNR"),
            ("dtype", "checkpoint's precision"),
            ("encoding", "VAE, clip skip or reading of captions"),
        )
        if before[name] != now[name]
    ]


def judge(changes: list[Change], *, anyway: bool) -> list[str]:
    """Refuse to go on over these changes, or turn them into remarks; as `check_resume`."""
    blocking = [change for change in changes if change.fatal or not anyway]
    if blocking:
        possible = not any(change.fatal for change in changes)
        reasons = [change.reason for change in changes]
        listed = "; ".join(reasons[:4]) + (
            f"; and {len(reasons) - 4} more changes" if len(reasons) > 4 else ""
        )
        advice = (
            "Put it back as it was, or go on anyway."
            if possible
            else "Put it back as it was, or train anew under another name."
        )
        raise Refused(
            f"This run cannot go on just as it was: {listed}. {advice}",
            code="cannot_resume",
            details={"reasons": reasons, "anyway_possible": possible},
        )
    return [f"Gone on although {change.reason}." for change in changes]


def _compare_pictures(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    changes = []
    for what, names in (
        ("missing", before.keys() - now.keys()),
        ("new", now.keys() - before.keys()),
    ):
        if names:
            changes.append(Change(f"{_some(names)} {'is' if len(names) == 1 else 'are'} {what}"))
    both = before.keys() & now.keys()
    for key, what in (
        ("content", "the picture of"),
        ("caption", "the caption of"),
        ("repeats", "the repeats of"),
        ("bucket", "the bucket of"),
        ("role", "the part in training of"),
        ("mask", "the mask of"),
    ):
        if names := {name for name in both if before[name][key] != now[name][key]}:
            changes.append(Change(f"{what} {_some(names)} changed"))
    return changes


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _name(path: Path, config: TrainConfig) -> str:
    return (
        path.relative_to(config.train_data_dir).as_posix()
        if path.is_relative_to(config.train_data_dir)
        else path.as_posix()
    )


def _in_size(resolution: int, config: TrainConfig) -> str:
    """Return what tells a picture in another resolution from the same in the main one, whose name
    is as it always was.
    """
    return "" if resolution == config.resolution else f" in {resolution} px"


def _sample_facts(sample: Sample, contents: dict[Path, str]) -> dict[str, Any]:
    """Describe a sample; `contents` are the fingerprints of pictures that were read already."""
    path, bucket = sample.picture.path, sample.bucket
    if path not in contents:
        contents[path] = fingerprint_of_file(path)
    return {
        "content": contents[path],
        "caption": fingerprint_of_text(sample.caption),
        "repeats": sample.repeats,
        "bucket": [bucket.width, bucket.height],
        "role": sample.role,
        "mask": sample.mask and fingerprint_of_file(sample.mask),
    }
