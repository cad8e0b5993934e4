"""Settings from other trainers' files and from LoRAs: `import_settings` finds out which program
wrote a file, and returns its settings in our names with what was left out, and why.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..dataset.concepts import are_concepts, is_concepts
from ..settings.config import names_kept_in_lora
from ..settings.files import flattened, read_mapping
from ..settings.setting import SettingValues, WrittenSettings
from . import onetrainer
from .conversion import (
    Conversion,
    SkippedSetting,
    valid_settings,
)
from .kohya import translate
from .kohya_datasets import take_datasets
from .kohya_gui import from_kohya_ss
from .kohya_names import NOT_NEEDED
from .lora_metadata_reader import from_lora, read_header, read_json_text
from .lora_scripts import from_lora_scripts
from .onetrainer_concepts import find_concepts, read_settings_text, take_concepts
from .our_settings import from_our_names

OURS_ALONE = {
    "lora_rank",
    "lora_alpha",
    "lora_type",
    "lora_dropout",
    "epochs",
    "scheduler",
    "task_type",
    "lora_targets",
    "base_model",
    "metadata_path",
    "trigger_word",
    "rank",
    "network_rank",
    "lora_dim",
    "alpha",
}
IN_OUR_NAMES = "lora-scripts settings in our names"
GUI_MARKS = {
    "LoRA_type",
    "max_resolution",
    "lr_warmup",
    "LyCORIS_preset",
    "lora_network_weights",
    "sdxl_no_half_vae",
}
LORA_SCRIPTS_MARKS = {
    "model_train_type",
    "lycoris_algo",
    "network_args_custom",
    "optimizer_args_custom",
    "lr_restart_cycles",
    "prodigy_d_coef",
    "enable_block_weights",
}
COMPLETE_MARKS = {"network_module", "network_dim", "learning_rate", "unet_lr", "optimizer_type"}


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a file says: `settings` by our names, each valid; `left_out` with reasons; `source`,
    what kind of file it is, for the user.

    `assumed` names the settings that the file does not give and its program would have had so.
    """

    settings: SettingValues
    left_out: list[SkippedSetting]
    source: str
    assumed: tuple[str, ...] = ()


def import_settings(path: Path, *, look_around: bool = False) -> Imported:
    """Read settings from a .toml, .json or .yaml of sd-scripts, kohya_ss, OneTrainer, lora-scripts
    or ours, from OneTrainer's concepts, or from a LoRA (.safetensors).

    With `look_around` a file that it names is read, too; not for what a stranger has sent.

    Raises `Refused`: code "unreadable_config" for a damaged file, "no_settings" for one that holds
    none.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        conversion, source = from_lora(*read_header(path))
    elif is_concepts(path) and are_concepts(found := read_json_text(read_settings_text(path))):
        conversion, source = Conversion({}), "OneTrainer's concepts"
        take_concepts(conversion, found, path.name, beside=path.parent if look_around else None)
    else:
        nested = read_mapping(path)
        conversion, source = _from_config(nested, path if look_around else None)
    settings = valid_settings(conversion)
    if path.suffix.lower() == ".safetensors":
        settings = _without_places(settings, conversion)
    if not settings.keys() - conversion.assumed:
        raise _no_settings(path, conversion.left_out)
    assumed = tuple(sorted(conversion.assumed & settings.keys()))
    return Imported(settings, conversion.left_out, source, assumed)


def _no_settings(path: Path, left_out: list[SkippedSetting]) -> Refused:
    first = ""
    if left_out:
        reason = left_out[0].reason.rstrip(".")
        first = f" The first of {len(left_out)} things in it: {left_out[0].key} ({reason})."
    return Refused(
        f"{path.name} holds no settings that can be used for training a LoRA.{first}",
        code=ErrorCode.NO_SETTINGS,
    )


def _without_places(settings: SettingValues, conversion: Conversion) -> SettingValues:
    """Leave out what no LoRA has to say: it may come from anybody, and name folders, servers, and
    files to be replaced.
    """
    held = names_kept_in_lora()
    for name in [name for name in settings if name not in held]:
        conversion.skip(
            conversion.origin[name],
            settings[name],
            "names and places are not taken over from a LoRA",
        )
    return {name: value for name, value in settings.items() if name in held}


def _from_config(nested: WrittenSettings, path: Path | None = None) -> tuple[Conversion, str]:
    """Read a config as its program writes it, and return it with that program's name; `path` where
    files that it names may be read.
    """
    if "training_method" in nested and "model_type" in nested:
        return _from_onetrainer(nested, path), "OneTrainer's settings"
    has_datasets = "datasets" in nested or "general" in nested
    if has_datasets and not COMPLETE_MARKS & flattened(nested).keys():
        conversion = Conversion({})
        take_datasets(conversion, nested)
        translate(conversion, complete=False)
        return conversion, "kohya's dataset config"
    if isinstance(nested.get("metadata"), Mapping) and isinstance(nested.get("data"), Mapping):
        # a template of lora-scripts
        nested = {key: value for key, value in nested.items() if key != "metadata"}
    return _from_flat_config(nested)


def _from_onetrainer(nested: WrittenSettings, path: Path | None) -> Conversion:
    conversion = onetrainer.to_kohya(nested)
    translate(conversion, complete=False)
    found, source, beside = find_concepts(nested, path)
    if are_concepts(found):
        take_concepts(conversion, found, source, beside=beside)
    else:
        conversion.skip(
            "concept_file_name",
            nested.get("concept_file_name"),
            f"{NOT_NEEDED}: give your folders of pictures",
        )
    onetrainer.use_its_names(conversion)
    conversion.assumed |= onetrainer.assumed(nested) & conversion.settings.keys()
    return conversion


def _from_flat_config(nested: WrittenSettings) -> tuple[Conversion, str]:
    """Read a config of kohya_ss, lora-scripts, sd-scripts or ours, which may hold data sets."""
    datasets = {key: nested[key] for key in ("general", "datasets") if key in nested}
    values = flattened({key: value for key, value in nested.items() if key not in datasets})
    if GUI_MARKS & values.keys():
        conversion, source = from_kohya_ss(values), "kohya_ss settings"
    elif OURS_ALONE & values.keys() and not {"network_dim", "network_module"} & values.keys():
        return from_our_names(values), IN_OUR_NAMES
    else:
        is_lora_scripts = bool(LORA_SCRIPTS_MARKS & values.keys())
        source = "lora-scripts settings" if is_lora_scripts else "kohya's sd-scripts settings"
        conversion = from_lora_scripts(values)
    if datasets:
        take_datasets(conversion, datasets)
    if (config := conversion.take("dataset_config")) is not None:
        conversion.skip("dataset_config", config, "it is a file of its own: import it, too")
    is_complete = bool(COMPLETE_MARKS & conversion.values.keys())
    translate(conversion, complete=source == "kohya_ss settings" or is_complete)
    return conversion, source
