"""Whether a run can be resumed: what a training state says of its run, and what has changed since.

Some changes make it another run that is as good (a changed caption); those are refused until the
user says to go on anyway. Others make the state useless (another base model, other layers); those
are always refused.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, cast

from ..base.errors import ErrorCode, Refused
from ..settings.config import TrainConfig, all_settings
from ..settings.setting import OnResume, SettingValue
from ..training import state_files
from .facts import ModelIdentity, RunFacts, SampleFacts, SavedFacts, run_facts
from .plan import make_plan

_ModelKey = Literal["zero_terminal_snr", "dtype", "encoding"]
_MODEL_PHRASES: tuple[tuple[_ModelKey, str], ...] = (
    ("zero_terminal_snr", "zero terminal SNR"),
    ("dtype", "checkpoint's precision"),
    ("encoding", "VAE, clip skip or reading of captions"),
)
_SampleKey = Literal["content", "caption", "repeats", "bucket", "role", "mask"]
_SAMPLE_PHRASES: tuple[tuple[_SampleKey, str], ...] = (
    ("content", "picture"),
    ("caption", "caption"),
    ("repeats", "repeats"),
    ("bucket", "bucket"),
    ("role", "part in training"),
    ("mask", "mask"),
)


@dataclasses.dataclass(frozen=True)
class Change:
    """Something that has changed. `fatal`: the state cannot be used any more."""

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


def check_resume(
    config: TrainConfig, lora_dir: Path, folder: Path, *, anyway: bool = False
) -> list[str]:
    """Raise `Refused` (code "cannot_resume") when going on would not be the same run; return
    warnings of what has changed and is accepted.

    `details` hold `reasons` and `anyway_possible`. With `anyway` only what makes the state useless
    is refused. Without a state a run begins from its first step, and nothing is compared.
    """
    facts = cast(SavedFacts | None, state_files.latest_facts(state_folder(folder)))
    if facts is None:
        return check_readable(folder, found=False, anyway=anyway)
    plan = make_plan(config, lora_dir=lora_dir, session_id=facts.get("session"))
    return check_changes(compare_runs(facts, run_facts(config, plan)), anyway=anyway)


def check_readable(folder: Path, *, found: bool, anyway: bool) -> list[str]:
    """Raise `Refused` (code "cannot_resume") where a run has states on disk of which none can be
    read (`found` False), so that it would begin anew; with `anyway` return that as a warning.
    """
    if found or not any(state_folder(folder).glob("step-*")):
        return []
    why = "is damaged"
    if state_files.has_newer(state_folder(folder)):
        why = "was saved by a newer version of Train LoRA"
    unreadable = Change(f"its progress on disk {why}, so it begins with its first step again")
    return check_changes([unreadable], anyway=anyway)


def compare_runs(before: RunFacts, now: RunFacts) -> list[Change]:
    """List what differs in settings, pictures and captions."""
    # A setting that an earlier version did not have was as it is by default.
    old = {**TrainConfig().to_dict(), **before["config"]}
    new = now["config"]
    changes = _compare_settings(old, new)
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


def _compare_settings(
    old: Mapping[str, SettingValue], new: Mapping[str, SettingValue]
) -> list[Change]:
    """List the settings that may not change in silence, the fatal ones first."""
    changes = [
        Change(
            f"{setting.name} was {old[setting.name]} and is {new[setting.name]} now",
            fatal=setting.on_resume is OnResume.FATAL,
        )
        for setting in all_settings()
        if setting.on_resume in (OnResume.FATAL, OnResume.ASK)
        and old[setting.name] != new[setting.name]
    ]
    return sorted(changes, key=lambda change: not change.fatal)


def compare_models(before: ModelIdentity, now: ModelIdentity) -> list[Change]:
    """List what has changed in the base model."""
    if not _is_same_checkpoint(before, now):
        reason = f"the checkpoint {now['name']} has other weights than before"
        if before["name"] != now["name"]:
            reason = f"it was trained on {before['name']}, and {now['name']} is loaded"
        return [Change(reason, fatal=True)]
    if before["prediction_type"] != now["prediction_type"]:
        reason = (
            f"the model was taken to predict {before['prediction_type']} and is taken to"
            f" predict {now['prediction_type']} now"
        )
        return [Change(reason, fatal=True)]
    changes = []
    for key, name in _MODEL_PHRASES:
        if before[key] != now[key]:
            reason = f"the {name} was {before[key]} and is {now[key]} now"
            changes.append(Change(reason, fatal=key == "zero_terminal_snr"))
    return changes


def _is_same_checkpoint(before: ModelIdentity, now: ModelIdentity) -> bool:
    """Compare the files' hashes where both are known, else names and weights."""
    if (before["family"], before["variant"]) != (now["family"], now["variant"]):
        return False
    if before["sha256"] and now["sha256"]:
        return before["sha256"] == now["sha256"]
    if before["name"] != now["name"]:
        return False
    # The same weights in another dtype have another fingerprint.
    return before["fingerprint"] == now["fingerprint"] or before["dtype"] != now["dtype"]


def check_changes(changes: list[Change], *, anyway: bool) -> list[str]:
    """Raise `Refused` for changes that forbid going on, as `check_resume`; else return them as
    warnings.
    """
    reasons = [change.reason for change in changes]
    possible = not any(change.fatal for change in changes)
    if not reasons or (anyway and possible):
        return [f"Gone on although {reason}." for reason in reasons]
    listed = "; ".join(reasons[:4])
    if len(reasons) > 4:
        listed += f"; and {len(reasons) - 4} more changes"
    otherwise = "go on anyway" if possible else "train anew under another name"
    raise Refused(
        f"This run cannot go on just as it was: {listed}. Put it back as it was, or {otherwise}.",
        code=ErrorCode.CANNOT_RESUME,
        details={"reasons": reasons, "anyway_possible": possible},
    )


def _compare_pictures(
    before: Mapping[str, SampleFacts], now: Mapping[str, SampleFacts]
) -> list[Change]:
    changes = []
    for what, names in (
        ("missing", before.keys() - now.keys()),
        ("new", now.keys() - before.keys()),
    ):
        if names:
            changes.append(Change(f"{_some(names)} {'is' if len(names) == 1 else 'are'} {what}"))
    both = before.keys() & now.keys()
    for key, what in _SAMPLE_PHRASES:
        if names := {name for name in both if before[name][key] != now[name][key]}:
            changes.append(Change(f"the {what} of {_some(names)} changed"))
    return changes


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
