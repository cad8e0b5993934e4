"""Settings in our own names, as in our files, lora-scripts' YAML and the metadata of our LoRAs."""

import contextlib
import dataclasses
import re
from pathlib import Path

from ..base.errors import Refused
from ..settings.aliases import read_resolutions
from ..settings.config import KOHYA_NAMES, TrainConfig, in_our_names
from ..settings.lora_name import check_name
from ..settings.setting import SettingValues, WrittenSettings
from .conversion import Conversion, SkippedSetting, valid_settings
from .kohya_names import why_not

_SHARED_FOLDERS = {
    "",
    ".",
    "output",
    "outputs",
    "out",
    "lora",
    "loras",
    "models",
}  # of many LoRAs, so that none is called so


def from_our_names(values: WrittenSettings) -> Conversion:
    """Ours, or lora-scripts' YAML: names are ours or plain aliases."""
    conversion = Conversion(values)
    conversion.values |= read_resolutions(conversion.values)
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for key, value in sorted(
        conversion.values.items(), key=lambda item: item[0] in KOHYA_NAMES
    ):  # ours first: they win over aliases
        if key not in known and key not in KOHYA_NAMES:
            conversion.skip(key, value, why_not(key, known=known))
        elif (name := KOHYA_NAMES.get(key, key)) not in conversion.settings:
            conversion.set(name, value, key)
        else:
            conversion.skip(key, value, f"{name} is given, too, and counts")
    if (
        "output_dir" in conversion.settings
        and "output_name" not in conversion.settings
        and (name := name_for(conversion.settings, None))
    ):
        conversion.set("output_name", name, "output_name (left out)")
        conversion.assumed = {"output_name"}
    return conversion


def our_settings(values: WrittenSettings) -> tuple[SettingValues, list[SkippedSetting]]:
    """Return those of some settings that are valid, by our names, and the others with the
    reason.
    """
    conversion = from_our_names(values)
    return valid_settings(conversion), conversion.left_out


def name_for(values: WrittenSettings, path: Path | None) -> str:
    """Name a LoRA whose settings give it none: after the last part of the output folder, as
    lora-scripts does, else after the settings file; "" where neither can be a name.
    """
    folder = re.split(r"[\\/]", str(in_our_names(values).get("output_dir") or "").rstrip("\\/ "))[
        -1
    ]
    for name in ("" if folder.lower() in _SHARED_FOLDERS else folder, path.stem if path else ""):
        with contextlib.suppress(Refused):
            return check_name(name)
    return ""
