"""`new-config`: a settings file to fill in, with what every setting does, as lora-scripts'
configs/lora_default.yaml was.
"""

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..interop.presets import find_preset, presets_folder
from ..settings.config import GROUPS, all_settings
from ..settings.lora_name import check_name
from ..settings.setting import Setting, SettingValue, WrittenSettings
from .run_settings import data_dir_of

WIDTH = 98
FILLED_IN = {
    "train_data_dir": "./data/my_pictures",
    "base_model": "./models/Stable-diffusion/v1-5-pruned.safetensors",
}
"""Places that the user has to look at."""
FOLLOWS = {
    "resolution": "left out: that of the checkpoint's own pictures",
    "lora_alpha": "left out: as the rank",
    "max_train_steps": "",
    "output_dir": "left out: ./output",
}
"""Commented out although they matter: what leaving them out means is better than a number."""
GIVEN = (
    "train_data_dir",
    "base_model",
    "output_name",
    "trigger_word",
    "epochs",
    "batch_size",
    "learning_rate",
    "lora_rank",
    "optimizer",
    "scheduler",
    "save_steps",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE.yaml",
        help="where to write it; its name becomes the LoRA's",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="with the values of this preset, such as character or style, or of one of yours",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where your presets are kept (default: output/train_lora)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace that file")


def run(args: argparse.Namespace) -> int:
    """Write the template and return 0. Raises `Refused`."""
    _check_file(args.file, overwrite=args.overwrite)
    name = check_name(args.file.stem)
    preset = {}
    if args.preset:
        folder = presets_folder(args.data_dir or data_dir_of(None))
        preset = find_preset(args.preset, folder)["settings"]
    try:
        args.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.file, template(name, preset).encode("utf-8"))
    except OSError as error:
        raise Refused(
            f"{args.file} cannot be written: {error.strerror or error}.",
            field="file",
            code=ErrorCode.CANNOT_SAVE,
        ) from error
    print(
        f"wrote {args.file}; set train_data_dir and base_model in it, then python -m lora_trainer"
        f" train --config {args.file}"
    )
    return 0


def _check_file(file: Path, *, overwrite: bool) -> None:
    """Raise `Refused` for a file that would not be read as YAML, or is there already."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise Refused(
            f"{file} would not be read as YAML. Let its name end in .yaml.",
            field="file",
            code=ErrorCode.BAD_NAME,
        )
    if file.exists() and not overwrite:
        raise Refused(
            f"{file} exists already. Give another name, or --overwrite to replace it.",
            field="file",
            code=ErrorCode.EXISTS,
        )


def template(name: str, preset: WrittenSettings) -> str:
    """Return the text of a settings file for a LoRA of this name: what most runs set, and all else
    commented out with its default.
    """
    values = {**FILLED_IN, "output_name": name, **preset}
    return "\n".join(_lines(values)) + "\n"


def _lines(values: WrittenSettings) -> Iterator[str]:
    yield "# Settings of a run: python -m lora_trainer train --config with this file."
    yield (
        "# A line that begins with # says nothing; take the # and the space away to set what it"
        " names."
    )
    for group, title in GROUPS.items():
        yield from ("", "", f"# --- {title} {'-' * (WIDTH - len(title) - 7)}")
        for setting in all_settings():
            if setting.group == group and not setting.has_one_choice:
                yield from _entry(setting, values)


def _entry(setting: Setting, values: WrittenSettings) -> Iterator[str]:
    name = setting.name
    left_out = FOLLOWS.get(name, "")
    sentences = (
        f"{setting.title}. {setting.help}",
        _limits(setting),
        f"({left_out})" if left_out else "",
    )
    yield ""
    yield from textwrap.wrap(
        " ".join(filter(None, sentences)),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
    )
    given = name in GIVEN or name in values
    value = _as_yaml(values.get(name, setting.default))
    yield f"{name}: {value}" if given else f"# {name}: {value}"


def _limits(setting: Setting) -> str:
    if setting.choices:
        return f"One of {', '.join(setting.choices)}."
    phrase = setting.range_phrase()
    return f"{phrase}." if phrase else ""


def _as_yaml(value: SettingValue) -> str:
    """Return a value as one line of YAML."""
    text: str = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
