"""`storage`: what jobs, training states, trash and models take of the disk, and how to have it
back; and the limits that commands keep to.
"""

import argparse
import dataclasses
from pathlib import Path

from ..base.contracts import Host
from ..base.errors import ErrorCode, Refused
from ..jobs.service import TrainingService
from ..jobs.storage import CLEARABLE, Limits, StorageReport
from ..jobs.store import database_path

TITLES = {
    "jobs": "jobs",
    "states": "training states of finished jobs",
    "trash": "trash of data sets",
    "models": "downloaded captioner models",
}
HELPS = {
    "keep_jobs": (
        "keep the newest K finished jobs; older ones are deleted, their LoRAs stay (default: 0,"
        " all)"
    ),
    "state_days": (
        "how long a finished job can be trained on; then its training state is removed (default:"
        " 30, 0: always)"
    ),
    "state_gb": (
        "how much the training states of finished jobs may take, in GB; the oldest go first"
        " (default: 5, 0: any)"
    ),
}


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add an option for each of `Limits`."""
    for field in dataclasses.fields(Limits):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            metavar="K" if field.name == "keep_jobs" else "N",
            help=HELPS[field.name],
        )


def limits_of(args: argparse.Namespace) -> Limits:
    return Limits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="where jobs are kept, for example output/train_lora",
    )
    parser.add_argument(
        "--clear",
        choices=CLEARABLE,
        help=(
            "remove these; a job that has not finished keeps all of its own, and LoRAs always stay"
        ),
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="with --clear jobs: keep the newest N (default: 0)",
    )


def run(args: argparse.Namespace, host: Host) -> int:
    """Print what there is, after clearing; returns 1 where something could not be removed. Raises
    `Refused`.
    """
    if not database_path(host.data_dir).is_file():
        raise Refused(
            f"There are no jobs in {args.data_dir}.", field="data_dir", code=ErrorCode.NOT_FOUND
        )
    # no limits: only what was asked for is removed
    service = TrainingService(host, limits=Limits(0, 0, 0))
    problems = []
    if args.clear:
        done = service.storage.clear(args.clear, keep=max(0, args.keep))
        problems = done["problems"]
        print(f"removed {done['count']} ({size_text(done['bytes'])}): {TITLES[args.clear]}")
    print(table(service.storage.report()))
    for problem in problems:
        print(f"note: {problem}")
    return 1 if problems else 0


def table(report: StorageReport) -> str:
    """Return a report as aligned lines."""
    usages = {title: report[what] for what, title in TITLES.items()}
    width = max(map(len, usages))
    lines = [
        f"{title.ljust(width)}  {usage['count']:>6}  {size_text(usage['bytes']):>9}"
        for title, usage in usages.items()
    ]
    return "\n".join([*lines, f"free on this disk: {size_text(report['free_bytes'])}"])


def size_text(size_bytes: int) -> str:
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    if size_bytes >= 1e6:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e3:.0f} kB"
