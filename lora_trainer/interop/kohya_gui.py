"""Settings files of kohya_ss, kohya's GUI, brought into sd-scripts' names as its Start button does
it.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..base.text import number
from .conversion import LONGEST_ARGUMENTS, Conversion, is_unset, parse_text
from .kohya_names import NOT_NEEDED

GUI_NETWORKS = {  # kohya_ss' LoRA_type: sd-scripts' module and LyCORIS' algorithm
    "standard": ("networks.lora", ""),
    "kohya locon": ("networks.lora", ""),
    "locon": ("lycoris.kohya", "locon"),
    "lora-fa": ("networks.lora_fa", ""),
    "kohya dylora": ("networks.dylora", ""),
    "kohya loha": ("networks.loha", ""),
    "kohya lokr": ("networks.lokr", ""),
}


NETWORK_KEYS = (
    "conv_dim",
    "conv_alpha",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
    "down_lr_weight",
    "mid_lr_weight",
    "up_lr_weight",
    "block_lr_zero_threshold",
    "rank_dropout",
    "module_dropout",
    "factor",
    "use_cp",
    "use_tucker",
    "use_scalar",
    "decompose_both",
    "train_on_input",
    "dora_wd",
    "rank_dropout_scale",
    "train_norm",
    "constrain",
    "rescaled",
    "bypass_mode",
    "unit",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
    "rs_lora",
)


def from_kohya_ss(values: Mapping[str, Any]) -> Conversion:  # noqa: C901
    """Bring what kohya_ss' page saves into sd-scripts' names, as its Start button does."""
    conversion = Conversion(values)
    ours = conversion.values
    for theirs, name in (
        ("optimizer", "optimizer_type"),
        ("max_resolution", "resolution"),
        ("lora_network_weights", "network_weights"),
        ("vae_path", "vae"),
    ):
        if (value := conversion.take(theirs)) is not None:
            ours.setdefault(name, value)
    _gui_network(conversion)
    epoch = conversion.take("epoch")
    if (
        is_unset(ours.get("max_train_epochs"))
        and is_unset(ours.get("max_train_steps"))
        and not is_unset(epoch)
    ):
        ours["max_train_epochs"] = epoch
    if is_unset(ours.get("lr_scheduler_num_cycles")) and not is_unset(epoch):
        ours["lr_scheduler_num_cycles"] = epoch
    if is_unset(ours.get("lr_warmup_steps")) and (percent := number(conversion.take("lr_warmup"))):
        ours["lr_warmup_steps"] = percent / 100
    conversion.take("lr_warmup")
    unet, encoder = number(ours.get("unet_lr")) or 0, number(ours.get("text_encoder_lr")) or 0
    for key, rate, other, flag in (
        ("unet_lr", unet, encoder, "text_encoder"),
        ("text_encoder_lr", encoder, unet, "unet"),
    ):
        if rate == 0:
            ours.pop(key, None)
            if other:
                ours[f"network_train_{flag}_only"] = True
    _gui_noise(conversion)
    for key in (
        "seed",
        "clip_skip",
        "max_timestep",
        "min_timestep",
        "scale_weight_norms",
        "network_dropout",
    ):
        if is_unset(ours.get(key)):
            ours.pop(key, None)
    _additional(conversion)
    return conversion


def _gui_network(conversion: Conversion) -> None:
    kind = str(conversion.take("LoRA_type", "Standard"))
    module, algorithm = GUI_NETWORKS.get(
        kind.lower(),
        (
            ("lycoris.kohya", kind.partition("/")[2].lower())
            if kind.lower().startswith("lycoris/")
            else (kind, "")
        ),
    )
    given = {key: value for key in NETWORK_KEYS if (value := conversion.take(key)) is not None}
    preset = conversion.take("LyCORIS_preset")
    if module == "lycoris.kohya":
        given = {**given, "algo": algorithm, "preset": preset or "full"}
        blocks = [key for key in given if "block_" in key or key.endswith("_lr_weight")]
    else:
        blocks = []
        if kind.lower() not in ("kohya locon", "kohya loha", "kohya lokr"):
            blocks = [key for key in ("conv_dim", "conv_alpha") if key in given]
        blocks += [
            key
            for key in ("factor", "unit", "train_on_input", "use_cp", "constrain")
            if key in given
        ]
    for key in blocks:  # what the page's other kinds of LoRA have
        given.pop(key)
    if given.get("algo") not in (None, "lokr"):
        given.pop("factor", None)
    for key in ("unit", "train_on_input", "constrain"):
        given.pop(key, None)
    conversion.values["network_module"] = module
    conversion.values["network_args"] = {
        key: value for key, value in given.items() if not is_unset(value)
    }


def _gui_noise(conversion: Conversion) -> None:
    kind = str(conversion.take("noise_offset_type", "Original"))
    unused = (
        ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
        if kind == "Multires"
        else ("multires_noise_iterations", "multires_noise_discount")
    )
    for key in unused:
        conversion.skip_key(key, f"{NOT_NEEDED}: the file's kind of noise is {kind}")


def _additional(conversion: Conversion) -> None:
    """Read "--name value --flag" of the page's last field as further settings."""
    text = conversion.take("additional_parameters")
    if not isinstance(text, str):
        return
    if len(text) > LONGEST_ARGUMENTS:
        return conversion.skip(
            "additional_parameters",
            f"{text[:40]} …",
            f"only {LONGEST_ARGUMENTS} characters are read",
        )
    for name, value in re.findall(r"--([A-Za-z0-9_]+)(?:[ =]+((?:(?!--)\S+ ?)+))?", text):
        value = value.strip()
        conversion.values[name] = (
            True
            if not value
            else value.split()
            if name.endswith("_args")
            else parse_text(value.strip("\"'"))
        )
