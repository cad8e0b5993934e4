"""`import-settings`: what another trainer's file or a LoRA says, in our names; what could not be
taken over is listed with the reason.
"""

import argparse
from pathlib import Path

import yaml

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..jobs.settings_import import read
from ..settings.config import TrainConfig
from ..settings.setting import SettingValues


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help=(
            "kohya's .toml or .json, OneTrainer's .json, lora-scripts' .yaml or .toml, or a LoRA as"
            " .safetensors"
        ),
    )
    parser.add_argument(
        "--into", type=Path, metavar="RUN.yaml", help="write them there, for `train --config`"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace that file")


def run(args: argparse.Namespace) -> int:
    """Print what was taken over and what was left out, write the former if asked to, and return 0.
    Raises `Refused`.
    """
    if args.into and args.into.exists() and not args.overwrite:
        raise Refused(
            f"{args.into} exists already. Give another name, or --overwrite to replace it.",
            field="into",
            code=ErrorCode.EXISTS,
        )
    found = read(args.file, look_around=True)
    TrainConfig.parse(found["settings"])
    print(
        f"{found['source']}: {len(found['settings'])} settings taken over, {len(found['left_out'])}"
        " left out"
    )
    taken_over = []
    for name, value in found["settings"].items():
        note = " (not said; what its program would have used)" if name in found["assumed"] else ""
        taken_over.append(f"{name}: {_short(value)}{note}")
    left_out = [
        f"{left['key']}: {_short(left['value'])} ({left['reason']})" for left in found["left_out"]
    ]
    _print_list("taken over", taken_over)
    _print_list("left out", left_out)
    if args.into:
        _write(args.into, found["settings"])
        print(f"wrote {args.into}; python -m lora_trainer train --config {args.into}")
    return 0


def _write(path: Path, settings: SettingValues) -> None:
    try:
        write_atomically(
            path, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False).encode("utf-8")
        )
    except OSError as error:
        raise Refused(
            f"{path} cannot be written: {error.strerror or error}.",
            field="into",
            code=ErrorCode.CANNOT_SAVE,
        ) from error


def _print_list(title: str, lines: list[str]) -> None:
    if lines:
        print(f"\n{title}:", *(f"  {line}" for line in lines), sep="\n")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
