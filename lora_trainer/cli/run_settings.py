"""The settings of a run as they are brought to the command line: a preset, a file, and options,
each over the one before; with the name, the places and the resolution that a settings file may
leave to the program that it was written for.
"""

import argparse
import contextlib
from pathlib import Path

from ..base.contracts import Host
from ..base.errors import ErrorCode, Refused
from ..base.paths import expand_user
from ..interop.our_settings import name_for
from ..interop.presets import find_preset, presets_folder
from ..interop.readers import IN_OUR_NAMES, import_settings
from ..settings.aliases import read_resolutions
from ..settings.config import KOHYA_NAMES, TrainConfig, all_settings, in_our_names
from ..settings.files import read_settings
from ..settings.setting import PathKind, WrittenSettings


def read_run(args: argparse.Namespace) -> WrittenSettings:
    """Return what the preset, the file and the options of `train` say, and a name for the LoRA.

    Prints what the settings leave open and how it is taken. Raises `Refused`.
    """
    values = _read_typed(args)
    if args.config:
        written = read_settings(args.config)
        values = _over({**written, **_found_places(written, args.config)}, values)
    if args.preset:
        data_dir = args.data_dir or data_dir_of(in_our_names(values).get("output_dir"))
        preset = find_preset(args.preset, presets_folder(data_dir))
        values = _over(preset["settings"], values)
    if not in_our_names(values).get("output_name") and (name := name_for(values, args.config)):
        print(f"note: no output_name is given; the LoRA is called {name}")
        values = {**values, "output_name": name}
    return values


def _read_typed(args: argparse.Namespace) -> WrittenSettings:
    """Return the settings that are given as options."""
    options = {setting.name: getattr(args, setting.name) for setting in all_settings()}
    typed = {name: value for name, value in options.items() if value is not None}
    return {**typed, **read_resolutions(typed)}


def parsed(values: WrittenSettings, file: Path | None) -> TrainConfig:
    """Make a config of settings, of which some are from a file. Raises `Refused`; where that is
    another trainer's file with more in it than there is here, with the command that reads such."""
    try:
        return TrainConfig.parse(values)
    except Refused as error:
        if (
            error.code != ErrorCode.UNKNOWN_SETTING
            or not file
            or not (source := _source_of_others(file))
        ):
            raise
        raise Refused(
            f"{error.message} {file.name} holds {source}. Take over what there is here with "
            f"python -m lora_trainer import-settings {file} --into {file.stem}-run.yaml",
            field=error.field,
            code=error.code,
        ) from error


def _source_of_others(file: Path) -> str:
    """Say whose settings a file holds; "" for ours, and for what cannot be read as anybody's."""
    with contextlib.suppress(Refused):
        source = import_settings(file).source
        return "" if source == IN_OUR_NAMES else source
    return ""


def data_dir_of(output_dir: object) -> Path:
    """Return where jobs and presets are kept unless it is said."""
    return Path(str(output_dir or "output")) / "train_lora"


def at_model_size(values: WrittenSettings, host: Host) -> WrittenSettings:
    """Fill in the size of the checkpoint's own pictures where no resolution is given."""
    if values.get("resolution") not in (None, "") or not (status := host.model_status()).trainable:
        return values
    return {**values, "resolution": status.size_px or host.default_size_px}


def _over(lower: WrittenSettings, upper: WrittenSettings) -> WrittenSettings:
    """Put settings over others, whichever names either uses."""
    said = in_our_names(upper)
    unsaid = {
        name: value for name, value in lower.items() if KOHYA_NAMES.get(name, name) not in said
    }
    return {**unsaid, **upper}


def _found_places(values: WrittenSettings, config: Path) -> dict[str, str]:
    """Find files and folders that are not where a relative path says, from the current folder:
    beside the settings file, or beside its folder. Prints where each was found.
    """
    found = {}
    read_from = {
        setting.name for setting in all_settings() if setting.path not in (None, PathKind.OUTPUT)
    }
    for name, written in values.items():
        if KOHYA_NAMES.get(name, name) not in read_from or not isinstance(written, str):
            continue
        if place := _place_near(expand_user(written.strip()), config):
            found[name] = str(place)
            print(f"note: {name}: {written} is not in this folder; {place} is taken")
    return found


def _place_near(path: Path, config: Path) -> Path | None:
    """Return where a relative path leads from the settings file's folder or the one above it; None
    for nowhere, and for a path that leads somewhere as it is.
    """
    if not path.name or path.is_absolute() or path.exists():
        return None
    folder = config.absolute().parent
    places = (folder / path, folder.parent / path)
    return next((place for place in places if place.exists()), None)
