"""Settings files of kohya_ss, kohya's GUI, brought into sd-scripts' names as its Start button does
it.
"""

import re

from ..base.text import number
from ..settings.setting import WrittenSettings
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


_RENAMED = (  # the page's name, sd-scripts' name
    ("optimizer", "optimizer_type"),
    ("max_resolution", "resolution"),
    ("lora_network_weights", "network_weights"),
    ("vae_path", "vae"),
)
_ZERO_IS_UNSET = (
    "seed",
    "clip_skip",
    "max_timestep",
    "min_timestep",
    "scale_weight_norms",
    "network_dropout",
)


def from_kohya_ss(values: WrittenSettings) -> Conversion:
    """Bring what kohya_ss' page saves into sd-scripts' names, as its Start button does."""
    conversion = Conversion(values)
    for gui_name, name in _RENAMED:
        if (value := conversion.take(gui_name)) is not None:
            conversion.values.setdefault(name, value)
    _gui_network(conversion)
    _gui_length(conversion)
    _gui_learning_rates(conversion)
    _gui_noise(conversion)
    for key in _ZERO_IS_UNSET:
        if is_unset(conversion.values.get(key)):
            conversion.values.pop(key, None)
    _additional(conversion)
    return conversion


def _gui_length(conversion: Conversion) -> None:
    """The page's epochs count where no other length is given; its warm-up is in percent."""
    values = conversion.values
    epochs = conversion.take("epoch")
    if not is_unset(epochs):
        if is_unset(values.get("max_train_epochs")) and is_unset(values.get("max_train_steps")):
            values["max_train_epochs"] = epochs
        if is_unset(values.get("lr_scheduler_num_cycles")):
            values["lr_scheduler_num_cycles"] = epochs
    percent = number(conversion.take("lr_warmup"))
    if percent and is_unset(values.get("lr_warmup_steps")):
        values["lr_warmup_steps"] = percent / 100


def _gui_learning_rates(conversion: Conversion) -> None:
    """A rate of 0 is none; beside another rate it means that only the other part is trained."""
    values = conversion.values
    unet = number(values.get("unet_lr")) or 0
    text_encoder = number(values.get("text_encoder_lr")) or 0
    if unet == 0:
        values.pop("unet_lr", None)
        if text_encoder:
            values["network_train_text_encoder_only"] = True
    if text_encoder == 0:
        values.pop("text_encoder_lr", None)
        if unet:
            values["network_train_unet_only"] = True


def _gui_network(conversion: Conversion) -> None:
    as_written = str(conversion.take("LoRA_type", "Standard"))
    kind = as_written.lower()
    if kind in GUI_NETWORKS:
        module, algorithm = GUI_NETWORKS[kind]
    elif kind.startswith("lycoris/"):
        module, algorithm = "lycoris.kohya", kind.partition("/")[2]
    else:
        module, algorithm = as_written, ""
    args = {key: value for key in NETWORK_KEYS if (value := conversion.take(key)) is not None}
    preset = conversion.take("LyCORIS_preset")
    if module == "lycoris.kohya":
        args |= {"algo": algorithm, "preset": preset or "full"}
    for key in _keys_of_other_kinds(kind, module, args):
        args.pop(key, None)
    conversion.values["network_module"] = module
    conversion.values["network_args"] = {
        key: value for key, value in args.items() if not is_unset(value)
    }


def _keys_of_other_kinds(kind: str, module: str, args: WrittenSettings) -> list[str]:
    """Return the network_args that belong to other kinds of LoRA: the page saves all fields."""
    others = ["unit", "train_on_input", "constrain"]
    if module == "lycoris.kohya":
        others += [key for key in args if "block_" in key or key.endswith("_lr_weight")]
        if args["algo"] != "lokr":
            others.append("factor")
        return others
    if kind not in ("kohya locon", "kohya loha", "kohya lokr"):
        others += ["conv_dim", "conv_alpha"]
    return [*others, "factor", "use_cp"]


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
