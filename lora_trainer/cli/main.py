"""The command line: train, jobs, storage, new-config, import-settings, auto-label, demo,
demo-checkpoint, ui, bench.

Knows no host; `__main__` brings one.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..base.contracts import Host
from ..base.errors import Refused
from ..base.shutdown import close_at_end
from ..jobs.job import JobView
from ..jobs.service import TrainingService
from ..settings.setting import WrittenSettings
from . import auto_label, import_settings, new_config, storage, train
from . import jobs as job_table

MakeHost = Callable[..., Host]
Command = Callable[[argparse.Namespace, MakeHost], int]


def main(arguments: Sequence[str] | None = None, *, make_host: MakeHost) -> int:
    """Run a command and return the exit status: 0, 1 for something refused or failed, 130 for
    Ctrl-C.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    console = logging.StreamHandler()
    # the level of the handler: a job lowers the package's own for its log.txt
    console.setLevel(logging.INFO if args.verbose else logging.WARNING)
    logging.basicConfig(level=console.level, format="%(message)s", handlers=[console])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that knows no emoji must not end a run
    try:
        return args.command(args, make_host)
    except Refused as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


# --- Commands -------------------------------------------------------------------------------------


def _train(args: argparse.Namespace, make_host: MakeHost) -> int:
    return train.run(args, make_host)


def _jobs(args: argparse.Namespace, make_host: MakeHost) -> int:
    print(job_table.table(args.data_dir))
    return 0


def _storage(args: argparse.Namespace, make_host: MakeHost) -> int:
    data_dir = args.data_dir.expanduser()
    host = make_host(checkpoint=Path(), lora_dir=data_dir.absolute().parent, data_dir=data_dir)
    return storage.run(args, host)


def _import_settings(args: argparse.Namespace, make_host: MakeHost) -> int:
    return import_settings.run(args)


def _new_config(args: argparse.Namespace, make_host: MakeHost) -> int:
    return new_config.run(args)


def _auto_label(args: argparse.Namespace, make_host: MakeHost) -> int:
    return auto_label.run(args, make_host)


def _demo(args: argparse.Namespace, make_host: MakeHost) -> int:
    from ..demo.run import run_demo

    service = run_demo(args.output, make_host, _run_to_its_end, seed=args.seed)
    if args.ui:
        _serve(service, args.port)
    return 0


def _run_to_its_end(service: TrainingService, values: WrittenSettings) -> JobView:
    job = train.run_job(service, values)
    if job["state"] == "interrupted":  # by `kill`: there is nothing to judge yet
        raise KeyboardInterrupt
    return job


def _demo_checkpoint(args: argparse.Namespace, make_host: MakeHost) -> int:
    from ..demo.checkpoint import write_checkpoint

    path = write_checkpoint(args.into)
    print(f"wrote {path} with its .yaml and vocabulary; choose {path.stem} in the WebUI, at 64x64")
    return 0


def _ui(args: argparse.Namespace, make_host: MakeHost) -> int:
    host = make_host(
        checkpoint=args.checkpoint, lora_dir=args.output, data_dir=args.output / "train_lora"
    )
    if not (status := host.model_status()).trainable:
        raise Refused(status.reason, field="checkpoint")
    _serve(TrainingService(host, limits=storage.limits_of(args)), args.port)
    return 0


def _bench(args: argparse.Namespace, make_host: MakeHost) -> int:
    if args.dataset:
        from ..bench_dataset import report as report_on_data_set

        print(report_on_data_set(args.dataset))
        return 0
    from ..bench import report

    print(
        report(
            size_px=args.size,
            batch_size=args.batch,
            steps=args.steps,
            dtype=args.dtype,
            rank=args.rank,
            targets=args.targets,
            checkpointing=args.gradient_checkpointing,
        )
    )
    return 0


def _serve(service: TrainingService, port: int) -> None:
    from ..web.page import serve

    print(
        f"Train LoRA is open at http://127.0.0.1:{port}/ (this machine only); end it with Ctrl-C",
        flush=True,
    )
    close_at_end(service.close)
    serve(service, port=port)


# --- Arguments ------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lora_trainer",
        description="Train LoRAs for Stable Diffusion, without a WebUI.",
    )
    parser.add_argument("--verbose", action="store_true", help="also print the run's log")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Command, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(command=function)
        return command

    train.add_arguments(add("train", _train, "train a LoRA as a YAML, TOML or JSON file says"))
    _add_jobs_arguments(
        add("jobs", _jobs, "list the jobs of a data folder, and which of them can go on")
    )
    storage.add_arguments(add("storage", _storage, "say what jobs take of the disk, and clear it"))
    import_settings.add_arguments(
        add(
            "import-settings",
            _import_settings,
            "take over the settings of another trainer's file, or of a LoRA",
        )
    )
    new_config.add_arguments(
        add(
            "new-config",
            _new_config,
            "write a settings file to fill in, which says what every setting does",
        )
    )
    auto_label.add_arguments(
        add("auto-label", _auto_label, "write captions for a folder of pictures")
    )
    _add_demo_arguments(
        add(
            "demo",
            _demo,
            "train the embedded concept on the embedded checkpoint and judge the result",
        )
    )
    _add_demo_checkpoint_arguments(
        add(
            "demo-checkpoint",
            _demo_checkpoint,
            "write the embedded checkpoint so that a WebUI can load it",
        )
    )
    _add_ui_arguments(add("ui", _ui, "open the page with a checkpoint of yours"))
    _add_bench_arguments(
        add("bench", _bench, "measure time and memory of a step on a random SD1.5 UNet")
    )
    return parser


def _add_jobs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="where jobs are kept, for example output/train_lora",
    )


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        help="folder for the results (default: demo-output)",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--ui", action="store_true", help="then open the page on this machine")
    parser.add_argument("--port", type=int, default=7870)


def _add_demo_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into",
        type=Path,
        required=True,
        metavar="DIR",
        help="for example the WebUI's models/Stable-diffusion",
    )


def _add_ui_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="an SD1, SD2 or SDXL checkpoint (.safetensors)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output"),
        help="folder for LoRAs and jobs (default: output)",
    )
    parser.add_argument("--port", type=int, default=7870)
    storage.add_limits(parser)


def _add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        type=int,
        default=0,
        metavar="N",
        help="measure a data set of N pictures in the editor instead, for example 5000",
    )
    parser.add_argument(
        "--size", type=int, default=256, help="side of the pictures in pixels (default: 256)"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=7, help="measured steps (default: 7)")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of the frozen weights; the LoRA is fp32 in any case",
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--targets",
        choices=("attention", "attention+feed-forward", "all"),
        default="attention+feed-forward",
    )
    parser.add_argument("--gradient-checkpointing", action="store_true")
