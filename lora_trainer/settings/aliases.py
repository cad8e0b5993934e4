"""Names and spellings of other trainers, translated into ours before the values are checked.

Plain aliases are declared with each setting (`kohya`, `also`); what has another form or meaning in
whole files of kohya's is translated by interop/kohya.py.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from ..base.errors import ErrorCode, Refused
from .setting import Setting, WrittenSettings, shortened

LONGEST_KEY = 80  # characters of a name that one could have meant
LANGUAGE_TASKS = ("text-generation", "text_generation", "causal-lm", "causal_lm", "llm")
DIFFUSION_TASKS = ("lora", "sd", "stable_diffusion")
# Names that stand in kohya's files and in nobody else's.
KOHYA_MARKS = {
    "network_dim",
    "network_alpha",
    "network_module",
    "train_batch_size",
    "pretrained_model_name_or_path",
}


def aliases_of(settings: Iterable[Setting]) -> dict[str, str]:
    """Map other names to ours; kohya's first, which go before other spellings where a file gives
    both.
    """
    known = list(settings)
    kohya = {theirs: setting.name for setting in known for theirs in setting.kohya}
    others = {theirs: setting.name for setting in known for theirs in setting.also}
    return kohya | others


def rename_aliases(values: WrittenSettings, aliases: Mapping[str, str]) -> dict[str, object]:
    """Return the settings that are given (not None) under our names; unknown ones keep theirs.

    Our own name wins where another is given too, and of several others the first of `aliases`. But
    kohya's unet_lr wins over learning_rate: by it kohya trains the UNet where both are given.
    """
    ours = {
        str(key): value
        for key, value in values.items()
        if str(key) not in aliases and value is not None
    }
    if values.get("unet_lr") is not None:
        ours["learning_rate"] = values["unet_lr"]
    for theirs, name in aliases.items():
        if values.get(theirs) is not None:
            ours.setdefault(name, values[theirs])
    return ours


def to_our_names(values: WrittenSettings, aliases: Mapping[str, str]) -> WrittenSettings:
    """Translate other trainers' names, as `rename_aliases`, and their spellings of values.

    Raises `Refused` for the training of a language model.
    """
    ours = rename_aliases(values, aliases)
    from_kohya = not KOHYA_MARKS.isdisjoint(str(key) for key in values)
    ours |= read_resolutions(ours, kohya=from_kohya)
    _translate_spellings(ours)
    if str(ours.get("task_type")) in LANGUAGE_TASKS:
        raise _no_language_models(ours)
    return ours


def _translate_spellings(ours: dict[str, Any]) -> None:
    """Replace other trainers' words for choices, in place."""
    if isinstance(ours.get("optimizer"), str):
        ours["optimizer"] = ours["optimizer"].lower()
    if ours.get("scheduler") == "constant_with_warmup":
        ours["scheduler"] = "constant"
    if ours.get("save_precision") == "float":
        ours["save_precision"] = "fp32"
    if ours.get("task_type") in DIFFUSION_TASKS:
        ours["task_type"] = "stable-diffusion"


def _no_language_models(values: WrittenSettings) -> Refused:
    return Refused(
        f"Task: {values['task_type']}, training a language model, is not there yet;"
        " stable-diffusion is. It will take base_model as a name on the Hugging Face hub, such"
        " as meta-llama/Llama-2-7b-chat-hf, or a folder of such a model as transformers"
        " loads it." + _not_for_training(values.get("base_model")),
        field="task_type",
        code=ErrorCode.BAD_VALUE,
    )


def _not_for_training(base_model: object) -> str:
    """Say that a language model in GGML's or GGUF's format, as its name shows, is no base model."""
    name = re.split(r"[\\/]", str(base_model or "")[-200:])[-1]
    if not re.search(r"(?i)ggml|\.gguf$", name):
        return ""
    return (
        f" {name} is a quantised file (GGML or GGUF) that is made for running only: nothing can be"
        " trained on it."
    )


def unknown_setting(key: str, known: Iterable[str]) -> Refused:
    """Return the refusal of a name that no setting has, with the nearest one that there is."""
    near = difflib.get_close_matches(key[:LONGEST_KEY], list(known), n=1, cutoff=0.5)
    advice = "Run `python -m lora_trainer train --help` for the list."
    if near:
        advice = f"Did you mean {near[0]!r}?"
    return Refused(
        f"There is no setting {shortened(key)}. {advice}", field=key, code=ErrorCode.UNKNOWN_SETTING
    )


# --- Resolutions ----------------------------------------------------------------------------------


def read_resolutions(values: WrittenSettings, *, kohya: bool = False) -> WrittenSettings:
    """Read a `resolution` of several numbers: the first counts, the others are `extra_resolutions`.

    "512x768" is a rectangle, and so is "512,768" in a file of `kohya`'s: the side of the square of
    the same area counts. Returns what of the two settings was given; what cannot be read stays as
    it is, for the check of its type.
    """
    found = {name: values[name] for name in ("resolution", "extra_resolutions") if name in values}
    extra = found.get("extra_resolutions")
    if _is_plain_list(extra):
        extra = ", ".join(map(str, extra))
        found["extra_resolutions"] = extra
    sides = _sides(found.get("resolution"), kohya=kohya)
    if not sides or None in sides:
        return found
    main, *more = dict.fromkeys(sides)
    found["resolution"] = main
    if more:
        extras = [*map(str, more)] + ([str(extra)] if extra else [])
        found["extra_resolutions"] = ", ".join(extras)
    return found


def _sides(given: object, *, kohya: bool) -> list[int | None]:
    """Return the sides of a text or a list of resolutions; None for a part that is none."""
    if isinstance(given, str):
        if len(given) > LONGEST_KEY:
            return []
        parts = re.sub(r"[()\[\] ]", "", given).split(",")
    elif _is_plain_list(given) and len(given) <= LONGEST_KEY:
        parts = [str(part) for part in given]
    else:
        return []
    if kohya and len(parts) == 2:
        return [_side("x".join(parts))]
    return [_side(part) for part in parts]


def _is_plain_list(values: object) -> TypeGuard[Sequence[int | str]]:
    return isinstance(values, (list, tuple)) and all(type(value) in (int, str) for value in values)


def _side(text: str) -> int | None:
    """Return the side of the square of a text's area, "512" or "512x768"; None for another text."""
    if text.count("x") > 1:
        return None
    try:
        width, height = (int(part) for part in (text.split("x") * 2)[:2])
        return round(math.sqrt(width * height)) if min(width, height) > 0 else None
    except (ValueError, OverflowError):
        return None
