"""TrainConfig: one field, one default, one help text. The command line, the page and the API's schema derive from it.

Reads lora-scripts' YAML names, which are ours, and kohya's as aliases, from YAML, TOML or JSON. An unknown key is an error that
names the nearest known one.
"""
import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .errors import Refused

MAX_NAME_BYTES = 180


def setting(default: Any, title: str, help: str, *, group: str = "advanced", minimum: float | None = None, maximum: float | None = None,
            choices: tuple[str, ...] | None = None, unit: str = "") -> Any:
    """Declare one setting: default, what it is called and does, its range or choices, and the group it is shown in."""
    return dataclasses.field(default=default, metadata=dict(title=title, help=help, group=group, minimum=minimum, maximum=maximum,
                                                            choices=choices, unit=unit))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a run can be told. `parse` validates; an instance is always valid by itself."""

    # What to learn from
    train_data_dir: str = setting("", "Pictures", "Folder with the pictures and their captions, or the name of a data set.", group="pictures")
    metadata_path: str = setting("", "Caption table", "A metadata.csv (filename,prompt) or metadata.jsonl to read captions from, "
                                 "where a picture has no .txt beside it.", group="pictures")
    trigger_word: str = setting("", "Trigger word", "A rare word that calls your subject in a prompt. It is put in front of every caption "
                                "that lacks it.", group="main")
    base_model: str = setting("", "Base model", "Checkpoint file to train against. Empty: the one that is loaded.", group="output")

    # What to call it
    output_name: str = setting("", "Name", "The LoRA's file name; you will write <lora:name:0.8> in a prompt.", group="main")
    output_dir: str = setting("", "Output folder", "Where the LoRA is saved. Empty: the WebUI's LoRA folder.", group="output")
    overwrite: bool = setting(False, "Replace a LoRA of this name", "Off: a name that is taken is refused before anything starts.", group="output")
    preferred_weight: float = setting(0.8, "Preferred weight", "Weight written into the tag and the LoRA's card.", group="output", minimum=0.0, maximum=2.0)

    # The settings that matter
    resolution: int = setting(512, "Resolution", "Pictures are scaled to this area. 512 for SD1, 768 for SD2, 1024 for SDXL.", group="main",
                              minimum=64, maximum=2048, unit="px")
    epochs: int = setting(10, "Epochs", "How often each picture is seen (times its repeats).", group="main", minimum=1, maximum=10_000)
    max_train_steps: int = setting(0, "Steps", "Train exactly this many steps. 0: as many as the epochs need.", group="main", minimum=0, maximum=1_000_000)
    batch_size: int = setting(1, "Batch size", "Pictures per step. More is steadier and needs more memory.", group="main", minimum=1, maximum=256)
    learning_rate: float = setting(1e-4, "Learning rate", "How big each correction is. 0.0001 suits most; too high breaks pictures.", group="main",
                                   minimum=1e-9, maximum=1.0)
    lora_rank: int = setting(16, "Rank", "How much the LoRA can hold. 8 to 32 suit characters and objects, 32 to 64 styles.", group="main",
                             minimum=1, maximum=1024)
    lora_alpha: float = setting(16.0, "Alpha", "Strength of the LoRA while training: its effect is scaled by alpha / rank.", group="main",
                                minimum=0.001, maximum=4096)

    # The rest
    task_type: str = setting("stable-diffusion", "Task", "What is trained.", choices=("stable-diffusion",), group="output")
    lora_dropout: float = setting(0.0, "Dropout", "Share of the LoRA's inputs left out at random; a little helps against overfitting.", minimum=0.0, maximum=0.9)
    lora_targets: str = setting("attention+feed-forward", "Layers", "Which layers learn. attention: small files; attention+feed-forward: kohya's usual "
                                "set; all: convolutions too, for styles and textures.", choices=("attention", "attention+feed-forward", "all"))
    repeats: int = setting(1, "Repeats", "How often each picture counts in an epoch. A folder named 10_name gives 10 by itself.", minimum=1, maximum=1000)
    enable_bucket: bool = setting(True, "Aspect-ratio buckets", "Keep each picture's shape as far as possible. Off: everything is cropped to a square.")
    bucket_step: int = setting(64, "Bucket step", "Sides of buckets are multiples of this.", minimum=8, maximum=256, unit="px")
    mirror: bool = setting(False, "Mirror", "Also learn from mirrored pictures. Not for text, logos or one-sided features.")
    random_crop: bool = setting(False, "Random crop", "Cut the part that does not fit the bucket at random, not from both sides evenly.")
    gradient_accumulation_steps: int = setting(1, "Gradient accumulation", "Batches added up into one step: a larger batch without its memory.",
                                               minimum=1, maximum=1024)
    optimizer: str = setting("adamw", "Optimizer", "How corrections are computed.", choices=("adamw",))
    weight_decay: float = setting(0.01, "Weight decay", "Pull of the LoRA's weights towards zero.", minimum=0.0, maximum=1.0)
    max_grad_norm: float = setting(1.0, "Gradient clipping", "Largest correction allowed in one step. 0: no limit.", minimum=0.0, maximum=1000.0)
    scheduler: str = setting("cosine", "Schedule", "How the learning rate changes over the run.",
                             choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"))
    lr_warmup_steps: int = setting(0, "Warm-up", "Steps over which the learning rate rises from zero.", minimum=0, maximum=100_000)
    mixed_precision: str = setting("auto", "Precision", "Numbers used while training; the LoRA itself is always fp32. auto: bf16 or fp16 on a GPU, fp32 on a CPU.",
                                   choices=("auto", "no", "fp16", "bf16"))
    save_precision: str = setting("fp16", "Saved as", "Numbers in the saved file. fp16 is what most people share; fp32 keeps every digit at twice the size.",
                                  choices=("fp16", "bf16", "fp32"))
    gradient_checkpointing: bool = setting(False, "Save memory", "Gradient checkpointing: less memory, about 40 % slower. The result is the same.")
    save_steps: int = setting(0, "Snapshot every", "Also save the LoRA every so many steps, as name-000100. 0: only at the end.", minimum=0, maximum=1_000_000,
                              unit="steps")
    init_lora: str = setting("", "Go on from a LoRA", "Name or file of a LoRA to start from, ours or any in kohya's layout. Its rank, alpha and layers are taken over.")
    sharing: str = setting("share", "Pictures meanwhile", "share: a picture that you generate is drawn between two steps, at once. exclusive: pictures wait "
                           "until training has ended.", choices=("share", "exclusive"))
    live: bool = setting(False, "Live LoRA", "A picture whose prompt names this LoRA is drawn with what it has learned up to that moment. "
                         "Off: with the newest snapshot.")
    save_state_minutes: float = setting(5.0, "Progress kept every", "How much work a power cut may cost at most. 0: by steps only.", minimum=0.0,
                                        maximum=1440.0, unit="minutes")
    save_state_steps: int = setting(0, "Or every", "Also keep the progress every so many steps. 0: by minutes only.", minimum=0,
                                    maximum=1_000_000, unit="steps")
    keep_states: int = setting(2, "Progress files", "How many of these files are kept; older ones are removed.", minimum=1, maximum=100)
    when_memory_runs_out: str = setting("adapt", "When memory runs out", "adapt: go on with less (slower, the same result). stop: end with a sentence.",
                                        choices=("adapt", "stop"))
    preview: bool = setting(True, "Preview picture", "Draw one picture with the finished LoRA, for its card. A picture that you chose for the card stays.", group="output")
    seed: int = setting(42, "Seed", "The same seed and settings give the same LoRA.", minimum=0, maximum=2**32 - 1)
    logging_dir: str = setting("", "Log folder", "Where the run's figures go. Empty: the job's own folder.", group="output")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Make a config from a mapping of our names or kohya's; raises `Refused` naming the first field that is wrong."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        cleaned = {}
        for key, value in _translate(values).items():
            if key not in known:
                raise Refused(_unknown_key(key, known), field=key, code="unknown_setting")
            cleaned[key] = _checked(known[key], value)
        config = cls(**cleaned)
        if config.output_name:
            check_name(config.output_name)
        return config

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read a YAML, TOML or JSON file; raises `Refused` when it cannot be read or says something impossible."""
        return cls.parse(read_settings(path))

    def replace(self, **changes: Any) -> "TrainConfig":
        return type(self).parse({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), allow_unicode=True, sort_keys=False)


def schema() -> list[dict[str, Any]]:
    """Describe every setting for interfaces: name, type, default, title, help, group, range, choices, unit."""
    return [dict(name=field.name, type=field.type.__name__ if isinstance(field.type, type) else field.type, default=field.default, **field.metadata)
            for field in dataclasses.fields(TrainConfig)]


def presets() -> list[dict[str, Any]]:
    """Return the package's presets, each `{name, title, help, settings}`, in the order they should be shown."""
    folder = resources.files("lora_trainer").joinpath("presets")
    found = [yaml.safe_load(item.read_text(encoding="utf-8")) for item in folder.iterdir() if item.name.endswith(".yaml")]
    return sorted(found, key=lambda preset: preset["order"])


def read_settings(path: Path) -> dict[str, Any]:
    """Read a mapping from YAML, TOML (flat or in sections, as kohya writes it) or JSON."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".toml":
            values = _read_toml(text)
        else:
            values = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise Refused(f"The settings file {path} cannot be read: {error}", code="unreadable_config") from error
    if not isinstance(values, Mapping):
        raise Refused(f"The settings file {path} holds {type(values).__name__}, not a list of `name: value` lines.", code="unreadable_config")
    return dict(values)


def check_name(name: str) -> str:
    """Return a LoRA's name if every system can store it and a prompt can call it, else raise `Refused`."""
    reason = None
    if not name.strip():
        reason = "is empty"
    elif name != name.strip() or name.endswith("."):
        reason = "begins or ends with a space or a full stop"
    elif ".." in name or (found := re.search(r'[\\/:*?"<>|,=\x00-\x1f]', name)):
        reason = f"contains {('..' if '..' in name else found.group())!r}"
    elif len(name.encode("utf-8")) > MAX_NAME_BYTES:
        reason = f"is {len(name)} characters long ({len(name.encode('utf-8'))} bytes; at most {MAX_NAME_BYTES})"
    elif re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d|none|addams)(\..*)?", name) or name.startswith("."):
        reason = "is reserved by Windows or the WebUI, or begins with a full stop"
    if reason:
        raise Refused(f"The name {name[:60]!r} {reason}. Use letters, digits, spaces, - and _; it becomes a file name and is written in prompts.",
                      field="output_name", code="bad_name")
    return name


# --- Names from other trainers -------------------------------------------------------------------------------------------

KOHYA_NAMES = {
    "network_dim": "lora_rank", "network_alpha": "lora_alpha", "network_dropout": "lora_dropout", "train_batch_size": "batch_size",
    "max_train_epochs": "epochs", "num_train_epochs": "epochs", "lr_scheduler": "scheduler", "optimizer_type": "optimizer", "save_every_n_steps": "save_steps",
    "pretrained_model_name_or_path": "base_model", "unet_lr": "learning_rate", "flip_aug": "mirror", "bucket_reso_steps": "bucket_step",
    "dataset_repeats": "repeats", "trigger_words": "trigger_word", "network_weights": "init_lora",
}


def _translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn other trainers' names and spellings into ours; our own name wins where both are given."""
    ours = {str(key): value for key, value in values.items() if str(key) not in KOHYA_NAMES and value is not None}
    if values.get("unet_lr") is not None:
        ours["learning_rate"] = values["unet_lr"]                                  # kohya trains the UNet at this one where both are given
    for theirs, name in KOHYA_NAMES.items():
        if values.get(theirs) is not None:
            ours.setdefault(name, values[theirs])
    if isinstance(ours.get("resolution"), (str, list, tuple)):
        ours["resolution"] = _square(ours["resolution"])
    if isinstance(ours.get("optimizer"), str):
        ours["optimizer"] = ours["optimizer"].lower()
    if ours.get("scheduler") == "constant_with_warmup":
        ours["scheduler"] = "constant"
    if ours.get("save_precision") == "float":
        ours["save_precision"] = "fp32"
    if ours.get("task_type") in ("lora", "sd", "stable_diffusion"):
        ours["task_type"] = "stable-diffusion"
    return ours


def _square(resolution: Any) -> Any:
    """Turn kohya's "512,768" into the side of the square of the same area; leave the rest to the range check."""
    parts = resolution.replace("x", ",").split(",") if isinstance(resolution, str) else list(resolution)
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        return resolution
    return round(math.sqrt(numbers[0] * numbers[-1])) if len(numbers) in (1, 2) and min(numbers) > 0 else resolution


def _read_toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:                                                    # Python 3.10
        try:
            import tomli as tomllib
        except ModuleNotFoundError as error:
            raise ValueError("TOML needs Python 3.11 or the package tomli; save the settings as YAML") from error
    flat: dict[str, Any] = {}
    for key, value in tomllib.loads(text).items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def _unknown_key(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, [*known, *KOHYA_NAMES], n=1, cutoff=0.5)
    return f"There is no setting {key!r}." + (f" Did you mean {near[0]!r}?" if near else " Run `python -m lora_trainer train --help` for the list.")


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """Return a value in the field's own type, or raise `Refused` with what was found and what was expected."""
    try:
        converted = _convert(type(field.default), value)
    except (TypeError, ValueError, OverflowError):
        converted = None
    low, high, choices = (field.metadata[key] for key in ("minimum", "maximum", "choices"))
    title = field.metadata["title"]
    if converted is None:
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[type(field.default)]
        raise Refused(f"{title}: {_short(value)} is not {kind}.", field=field.name, code="bad_value")
    if choices and converted not in choices:
        near = difflib.get_close_matches(str(converted), choices, n=1)
        raise Refused(f"{title}: {_short(value)} is not known. Choose one of: {', '.join(choices)}." + (f" Did you mean {near[0]}?" if near else ""),
                      field=field.name, code="bad_value")
    if low is not None and not low <= converted <= high:
        raise Refused(f"{title}: {_short(value)} is out of range. Use {low:g} to {high:g}.", field=field.name, code="bad_value")
    return converted


def _convert(kind: type, value: Any) -> Any:
    if kind is str:
        text = str(value).strip() if isinstance(value, (str, int, float, Path)) and not isinstance(value, bool) else None
        return text if text is not None and is_plain_text(text) else None
    if kind is bool:
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
        return value if isinstance(value, bool) else words.get(str(value).strip().lower())
    if isinstance(value, bool):
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    if kind is int:
        return int(number) if number == int(number) else None
    return number


def is_plain_text(text: str) -> bool:
    """Say whether text can be stored anywhere: no NUL, no half of a surrogate pair."""
    return "\x00" not in text and not re.search("[\ud800-\udfff]", text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
