"""`new-config`: a settings file to fill in, with what every setting does, as lora-scripts'
configs/lora_default.yaml was.
"""

import argparse
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import Refused
from ..base.files import write_atomically
from ..interop.presets import find_preset, presets_folder
from ..settings.config import GROUPS, schema
from ..settings.lora_name import check_name
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
    if args.file.suffix.lower() not in (".yaml", ".yml"):
        raise Refused(
            f"{args.file} would not be read as YAML. Let its name end in .yaml.",
            field="file",
            code="bad_name",
        )
    if args.file.exists() and not args.overwrite:
        raise Refused(
            f"{args.file} exists already. Give another name, or --overwrite to replace it.",
            field="file",
            code="exists",
        )
    name = check_name(args.file.stem)
    preset = (
        find_preset(args.preset, presets_folder(args.data_dir or data_dir_of(None)))["settings"]
        if args.preset
        else {}
    )
    try:
        args.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.file, template(name, preset).encode("utf-8"))
    except OSError as error:
        raise Refused(
            f"{args.file} cannot be written: {error.strerror or error}.",
            field="file",
            code="cannot_save",
        ) from error
    print(
        f"wrote {args.file}; set train_data_dir and base_model in it, then python -m lora_trainer"
        f" train --config {args.file}"
    )
    return 0


def template(name: str, preset: Mapping[str, Any]) -> str:
    """Return the text of a settings file for a LoRA of this name: what most runs set, and all else
    commented out with its default.
    """
    values = {**FILLED_IN, "output_name": name, **preset}
    return "\n".join(_lines(values)) + "\n"


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    yield "# Settings of a run: python -m lora_trainer train --config with this file."
    yield (
        "# A line that begins with # says nothing; take the # and the space away to set what it"
        " names."
    )
    entries = [entry for entry in schema() if entry["name"] != "task_type"]
    for group, title in GROUPS.items():
        yield from ("", "", f"# --- {title} {'-' * (WIDTH - len(title) - 7)}")
        for entry in entries:
            if entry["group"] == group:
                yield from _entry(entry, values)


def _entry(entry: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    name = entry["name"]
    about = " ".join(
        filter(
            None,
            (
                f"{entry['title']}. {entry['help']}",
                _limits(entry),
                FOLLOWS.get(name, "") and f"({FOLLOWS[name]})",
            ),
        )
    )
    yield ""
    yield from textwrap.wrap(
        about, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False
    )
    given = name in GIVEN or name in values
    yield f"{'' if given else '# '}{name}: {_as_yaml(values.get(name, entry['default']))}"


def _limits(entry: Mapping[str, Any]) -> str:
    if entry["choices"]:
        return f"One of {', '.join(entry['choices'])}."
    return (
        ""
        if entry["minimum"] is None
        else (
            f"{entry['minimum']:.10g} to"
            f" {entry['maximum']:.10g}{' ' * bool(entry['unit'])}{entry['unit']}."
        )
    )


def _as_yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    return (
        yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10_000)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
