"""Translates the settings of sd-scripts (kohya) into ours. Other programs' files are brought
into its names first: by `kohya_gui`, `lora_scripts`, `kohya_datasets`, `onetrainer` and
`lora_metadata_reader`.
"""

import ast
import contextlib
import dataclasses
import math
import re
from typing import Any, NamedTuple

from ..base.text import number
from ..dataset.captions import CAPTION_ENDINGS
from ..settings.config import KOHYA_NAMES, TrainConfig
from .conversion import (
    MOST_LITERAL,
    NO_LITERAL,
    Arguments,
    Conversion,
    is_unset,
    parse_arguments,
    parse_numbers,
)
from .kohya_names import (
    CANNOT,
    DEFAULT_STEPS,
    DEFAULTS,
    LATENT_PX,
    MOST_EPOCHS,
    MOST_SNAPSHOTS,
    NOT_NEEDED,
    OPTIMIZERS,
    OTHER_MODELS,
    SCHEDULE_OPTIONS,
    SCHEDULES,
    WEIGHT_DECAY,
    why_not,
)
from .kohya_network import take_network

# --- From sd-scripts' names to ours ---------------------------------------------------------------


def translate(conversion: Conversion, *, complete: bool) -> None:
    """Take sd-scripts' settings over into ours. A `complete` source says all of a run: what it does
    not name is as sd-scripts has it then.
    """
    said = set(conversion.values)
    if complete:
        conversion.values = {**DEFAULTS, **conversion.values}
    sdxl = _model(conversion)
    take_network(conversion, complete=complete, sdxl=sdxl)
    _learning_rates(conversion, complete)
    _optimizer(conversion)
    _length_and_schedule(conversion, complete)
    _snapshots(conversion)
    _noise_and_loss(conversion)
    _data(conversion, said)
    _text(conversion, said, sdxl=sdxl, complete=complete)
    _rest(conversion)
    conversion.assumed = {
        name
        for name, key in conversion.origin.items()
        if key.endswith("(left out)") or (complete and key.split()[0] not in said)
    }


def _model(conversion: Conversion) -> bool:
    """Take what is said of the base model; tell whether it is SDXL, as far as one can see."""
    name = conversion.take("pretrained_model_name_or_path")
    resolution = conversion.values.get("resolution")
    if isinstance(name, str) and name.lower().endswith((".safetensors", ".ckpt", ".pt")):
        conversion.set("base_model", name, "pretrained_model_name_or_path")
    else:
        conversion.skip(
            "pretrained_model_name_or_path",
            name,
            "it is not a checkpoint file: choose one that you have",
        )
    if conversion.take("v_parameterization") is True:
        conversion.set("prediction_type", "v_prediction", "v_parameterization")
    if conversion.take("zero_terminal_snr") is True:
        conversion.set("zero_terminal_snr", "on")
    marks = {"cache_text_encoder_outputs", "no_half_vae", "sdxl_cache_text_encoder_outputs"} & {
        key for key, value in conversion.values.items() if value is True
    }
    kind = (
        str(conversion.values.get("model_train_type", "")).startswith("sdxl")
        or conversion.values.get("sdxl") is True
    )
    large = (sides := read_sides(resolution)) is not None and sides[0] * sides[1] > 900**2
    return (
        bool(
            kind
            or marks
            or large
            or re.search(r"(?i)sdxl|[-_ ]xl|pony|illustrious|noob", str(name or ""))
        )
        and conversion.values.get("sdxl") is not False
    )


class _Rates(NamedTuple):
    """Learning rates as sd-scripts has them; None where one is not given."""

    common: Any
    unet: Any
    text_encoder: Any


def _learning_rates(conversion: Conversion, complete: bool) -> None:
    """Take over which parts learn, and how fast.

    sd-scripts trains both at learning_rate, unless one has its own or is left out; a part with a
    rate of 0 does not learn.
    """
    common = conversion.take("learning_rate")
    unet = conversion.take("unet_lr")
    rates = _Rates(common, unet, _text_encoder_rate(conversion))
    unet_only = conversion.take("network_train_unet_only") is True
    encoder_only = conversion.take("network_train_text_encoder_only") is True
    _take_unet_rate(conversion, rates)
    if encoder_only or (unet is not None and number(unet) == 0):
        key = "network_train_text_encoder_only" if encoder_only else "unet_lr"
        conversion.set("train_unet", False, key)
    if complete or unet_only or encoder_only or rates.text_encoder is not None:
        _take_text_encoder_rate(conversion, rates, complete=complete, unet_only=unet_only)


def _text_encoder_rate(conversion: Conversion) -> Any:
    """Return text_encoder_lr; of a list, with one rate for each text encoder, the first."""
    rate = conversion.take("text_encoder_lr")
    if isinstance(rate, str) and rate.startswith(("[", "(")):
        rate = parse_numbers(rate.strip("[]() ")) or rate
    if not isinstance(rate, (list, tuple)):
        return rate
    if len(set(map(number, rate))) > 1:
        reason = f"both text encoders learn at one rate: {rate[0]}"
        conversion.skip("text_encoder_lr", rate, reason)
    return rate[0] if rate else None


def _take_unet_rate(conversion: Conversion, rates: _Rates) -> None:
    common, unet, text_encoder = rates
    key = "learning_rate" if unet is None else "unet_lr"
    rate = common if unet is None else unet
    if rate is None or number(rate) == 0:
        return
    conversion.set("learning_rate", rate, key)
    if unet is None or common is None or text_encoder is None:
        return
    known = (number(unet), number(text_encoder), 0, DEFAULTS["learning_rate"])
    if number(common) not in known:
        reason = f"{NOT_NEEDED}: the UNet and the text encoder have their own"
        conversion.skip("learning_rate", common, reason)


def _take_text_encoder_rate(
    conversion: Conversion, rates: _Rates, *, complete: bool, unet_only: bool
) -> None:
    common, _, own = rates
    trains = not unet_only and (own is None or number(own) != 0)
    if unet_only:
        key = "network_train_unet_only"
    elif own is not None:
        key = "text_encoder_lr"
    else:
        key = "network_train_unet_only (left out)"
    conversion.set("train_text_encoder", trains, key)
    if not trains:
        return
    if own is not None:
        conversion.set("text_encoder_lr", own)
    elif complete and common is not None:
        conversion.set("text_encoder_lr", common, "learning_rate")


def _optimizer(conversion: Conversion) -> None:
    name = _optimizer_name(conversion)
    args = parse_arguments(conversion.take("optimizer_args"))
    if name is None and not args:
        return
    short = str(name or "adamw").rpartition(".")[2].lower().replace("_", "")
    if short not in OPTIMIZERS:
        reason = "this optimizer is not offered; Optimizer stays as it is"
        conversion.skip("optimizer_type", name, reason)
        for key, value in args.items():
            conversion.skip(f"optimizer_args {key}", value, f"it belongs to {name}")
        return
    ours, difference = OPTIMIZERS[short]
    if difference:
        conversion.skip("optimizer_type", name, f"{ours} is taken instead, {difference}")
    if name is not None:
        conversion.set("optimizer", ours, "optimizer_type")
        _weight_decay(conversion, args, ours)
        if ours == "adafactor":
            _adafactor(conversion, args)
    if args:
        text = " ".join(f"{key}={_plain(value)}" for key, value in args.items())
        conversion.set("optimizer_args", text, "optimizer_args")


def _optimizer_name(conversion: Conversion) -> object:
    """Return sd-scripts' name; older files have flags instead."""
    name = conversion.take("optimizer_type")
    for flag, resolved in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if conversion.take(flag) is True:
            name = resolved
    return name


def _weight_decay(conversion: Conversion, args: Arguments, optimizer: str) -> None:
    decay = number(args.get("weight_decay"))
    key = "optimizer_type" if decay is None else "optimizer_args weight_decay"
    value = args.pop("weight_decay", WEIGHT_DECAY.get(optimizer, 0.0))
    conversion.set("weight_decay", value, key)
    if optimizer == "dadaptation" and decay:
        args.setdefault("decouple", False)  # the package's default, which is not ours


def _adafactor(conversion: Conversion, args: Arguments) -> None:
    args.pop("warmup_init", None)
    if args.pop("relative_step", True) is False:
        args.setdefault("scale_parameter", True)  # the package's default, which is not ours
        return
    conversion.skip(
        "optimizer_args relative_step",
        True,
        "Adafactor does not find its own learning rate here: Learning rate and Schedule count",
    )


def _plain(value: object) -> str:
    if isinstance(value, str) and len(value) <= MOST_LITERAL:
        with contextlib.suppress(*NO_LITERAL):
            value = ast.literal_eval(value)
    return (
        ",".join(map(str, value))
        if isinstance(value, (list, tuple))
        else str(value).replace(" ", "")
    )


def _length_and_schedule(conversion: Conversion, complete: bool) -> None:
    steps = _length(conversion, complete=complete)
    name = _schedule(conversion)
    _warm_up(conversion, number(steps), constant=name == "constant")


def _length(conversion: Conversion, *, complete: bool) -> object:
    """Take over how long the run is; return its steps, None where epochs decide."""
    epochs = conversion.take("max_train_epochs", conversion.take("num_train_epochs"))
    steps = conversion.take("max_train_steps")
    if not is_unset(epochs):
        conversion.set("epochs", epochs, "max_train_epochs")
        reason = f"{NOT_NEEDED}: the number of epochs decides, as in sd-scripts"
        conversion.skip("max_train_steps", steps, reason)
        return None
    if is_unset(steps) and not complete:
        return None
    if is_unset(steps):
        steps = DEFAULT_STEPS
    conversion.set("max_train_steps", steps)
    return steps


def _schedule(conversion: Conversion) -> str:
    """Take over the learning-rate schedule with its options; return sd-scripts' name of it."""
    custom = conversion.take("lr_scheduler_type")
    named = conversion.take("lr_scheduler")
    name = str(custom or named or "").rpartition(".")[2].lower()
    schedule = SCHEDULES.get(name)
    if name and schedule is None:
        reason = "this schedule is not offered; Schedule stays as it is"
        if name.startswith("adafactor"):
            schedule = "constant"
            reason = "Adafactor does not choose its own learning rate here; constant is taken"
        key = "lr_scheduler_type" if custom else "lr_scheduler"
        conversion.skip(key, custom or named, reason)
    if schedule:
        conversion.set("scheduler", schedule, "lr_scheduler")
    for theirs, ours, needs in SCHEDULE_OPTIONS:
        value = conversion.take(theirs)
        is_used = schedule in (needs, None) and ours not in conversion.settings
        if is_used and not is_unset(value):
            conversion.set(ours, value, theirs)
    return name


def _snapshots(conversion: Conversion) -> None:
    """sd-scripts keeps the last n epochs' snapshots by number, those by steps that are n steps old
    at most.
    """
    ratio = number(conversion.values.get("save_n_epoch_ratio"))
    epochs = number(conversion.settings.get("epochs"))
    if ratio and ratio > 0 and epochs:
        conversion.take("save_n_epoch_ratio")
        conversion.set(
            "save_every_n_epochs",
            max(1, int(min(epochs / ratio, MOST_EPOCHS))),
            "save_n_epoch_ratio",
        )
    steps, every = (
        number(conversion.values.get(key)) for key in ("save_last_n_steps", "save_every_n_steps")
    )
    if not steps or not every or every <= 0:
        return
    conversion.take("save_last_n_steps")
    count = int(min(steps // every, MOST_SNAPSHOTS)) + 1
    by_epochs = number(conversion.values.get("save_last_n_epochs"))
    if by_epochs and by_epochs > count:
        reason = (
            "Snapshots kept counts those by epochs and by steps together: the larger number is"
            " taken"
        )
        conversion.skip("save_last_n_steps", steps, reason)
        return
    conversion.take("save_last_n_epochs")
    conversion.set("keep_snapshots", count, "save_last_n_steps")


def _warm_up(conversion: Conversion, total_steps: float | None, *, constant: bool) -> None:
    """Below 1 it is a share of all steps."""
    value = conversion.take("lr_warmup_steps")
    share = number(value)
    if is_unset(value):
        return
    if constant:
        conversion.skip(
            "lr_warmup_steps",
            value,
            f"{NOT_NEEDED}: in sd-scripts constant has no warm-up; constant_with_warmup has",
        )
    elif share is None or share >= 1:
        conversion.set("lr_warmup_steps", value)
    elif total_steps:
        conversion.set("lr_warmup_steps", int(share * total_steps))
    else:
        conversion.skip(
            "lr_warmup_steps",
            value,
            f"it is {share:.0%} of all steps, whose number depends on the pictures: set Warm-up to"
            " that part of the steps that the plan shows",
        )


def _noise_and_loss(conversion: Conversion) -> None:
    for key in ("noise_offset_random_strength", "ip_noise_gamma_random_strength"):
        amount = conversion.values.get(key.removesuffix("_random_strength"))
        if conversion.take(key) is True and not is_unset(amount):
            conversion.set(KOHYA_NAMES[key], True, key)
    if is_unset(conversion.values.get("multires_noise_iterations")):
        conversion.take("multires_noise_discount")
    if str(conversion.values.get("loss_type", "")) not in ("huber", "smooth_l1"):
        conversion.take("huber_c")
        conversion.take("huber_schedule")
    if number(conversion.values.get("huber_scale")) == 1:
        conversion.take("huber_scale")
    if number(conversion.values.get("validate_every_n_epochs")) not in (None, 1):
        conversion.skip(
            "validate_every_n_epochs",
            conversion.values["validate_every_n_epochs"],
            "validation is measured once an epoch, or every so many steps: Measured every",
        )
    conversion.take("validate_every_n_epochs")


def _data(conversion: Conversion, given: set[str]) -> None:
    """Take over what concerns pictures and captions; `given` are the keys that the file has."""
    _bucket_steps(conversion)
    _resolution(conversion)
    if conversion.values.get("enable_bucket") is False:
        for key in {"min_bucket_reso", "max_bucket_reso"} - given:
            conversion.take(key)
    if conversion.take("color_aug") is True:
        conversion.set("color_jitter", 0.05, "color_aug")
    _masks(conversion)
    values = conversion.values
    if number(values.get("token_warmup_min")) == 1 or is_unset(values.get("token_warmup_step")):
        conversion.take("token_warmup_min")
    if values.get("caption_separator") == ",":
        conversion.take("caption_separator")
    conversion.skip_key("caption_separator", "tags are parted by commas only")
    _captions(conversion)


def _bucket_steps(conversion: Conversion) -> None:
    steps = conversion.values.get("bucket_reso_steps")
    if 0 < (number(steps) or 0) < LATENT_PX:
        conversion.skip(
            "bucket_reso_steps",
            steps,
            f"{LATENT_PX} is taken: the model sees pictures in squares of {LATENT_PX} pixels",
        )
        conversion.values["bucket_reso_steps"] = LATENT_PX


def _resolution(conversion: Conversion) -> None:
    """Turn width and height into the side of a square of the same area."""
    resolution = conversion.values.get("resolution")
    sides = read_sides(resolution)
    if resolution is None or sides is None:
        return
    side_px = round(math.sqrt(sides[0] * sides[1]))
    conversion.values["resolution"] = side_px
    if sides[0] != sides[1] and conversion.values.get("enable_bucket", True) is False:
        conversion.skip(
            "resolution",
            resolution,
            f"without buckets pictures are cropped to a square here: {side_px} pixels, of the same"
            " area",
        )


def _masks(conversion: Conversion) -> None:
    mask, alpha = conversion.take("masked_loss"), conversion.take("alpha_mask")
    if alpha is True:
        conversion.set("masked_loss", "alpha", "alpha_mask")
    elif mask is True:
        conversion.skip("masked_loss", True, CANNOT["conditioning_data_dir"])
    elif mask in ("alpha", "files"):
        conversion.set("masked_loss", mask)


def _captions(conversion: Conversion) -> None:
    """sd-scripts draws a line of a caption with enable_wildcard, and else reads the first one
    only.
    """
    extension = conversion.take("caption_extension")
    if extension is not None and (ending := f".{str(extension).lstrip('.')}") in CAPTION_ENDINGS:
        conversion.set("caption_extension", ending)
    else:
        conversion.skip(
            "caption_extension",
            extension,
            "captions are read from .txt and .caption files beside the pictures, or from a table:"
            " rename them",
        )
    if (draws := conversion.take("enable_wildcard")) is not None:
        conversion.set(
            "caption_lines", "alternatives" if draws is True else "first", "enable_wildcard"
        )
    if draws is True:
        conversion.set("caption_wildcards", True, "enable_wildcard")


def read_sides(value: object) -> tuple[float, float] | None:
    """Read kohya's resolution: 512, "512,768", "(512, 768)", [512, 768]."""
    found = parse_numbers(
        re.sub(r"[()\[\] ]", "", value).replace("x", ",") if isinstance(value, str) else value
    )
    return (
        (found[0], found[-1])
        if found and len(found) in (1, 2) and min(found) > 0 and math.isfinite(found[0] * found[-1])
        else None
    )


def _text(conversion: Conversion, said: set[str], *, sdxl: bool, complete: bool) -> None:
    """Without clip_skip sd-scripts reads SD1's text encoder to its last layer, our 1; SD2 and SDXL
    always at the layer that they were made with, our 0.
    """
    skip, sd2 = conversion.take("clip_skip"), conversion.values.get("v2") is True
    if sdxl and not is_unset(skip):
        conversion.skip(
            "clip_skip",
            skip,
            f"{NOT_NEEDED}: SDXL is always read at the layer that it was made with",
        )
    elif not is_unset(skip):
        conversion.set("clip_skip", skip)
    elif complete and not sdxl and not sd2:
        conversion.set(
            "clip_skip", 1, "clip_skip" if "clip_skip" in said else "clip_skip (left out)"
        )


def _rest(conversion: Conversion) -> None:
    """Take over what has the same meaning, and say of all else why not."""
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    for key, value in list(conversion.values.items()):
        name = KOHYA_NAMES.get(key, key)
        if name in fields and name not in conversion.settings and not OTHER_MODELS.fullmatch(key):
            if not (is_unset(value) and is_unset(fields[name].default)):
                conversion.set(name, value, key)
        elif name in conversion.settings:
            conversion.skip(
                key, value, f"{NOT_NEEDED}: another setting of the file says so already"
            )
        else:
            conversion.skip(key, value, why_not(key, known=fields))
