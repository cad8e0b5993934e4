"""`train`: one job from the command line, from its beginning or, with --resume, from where it was.
It leaves with its job and starts no other.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..base.contracts import Host
from ..base.errors import ErrorCode, Refused
from ..base.text import counted
from ..jobs.job import ALIVE, STARTED, JobView
from ..jobs.service import TrainingService
from ..runs.pipeline import DRAWING
from ..settings.config import TrainConfig, all_settings
from ..settings.remedies import RemedyView
from ..settings.setting import Setting, SettingValue, WrittenSettings
from .ctrl_c import asked_by_ctrl_c, asked_by_termination
from .progress import Progress, ProgressDisplay, show_progress
from .run_settings import at_model_size, data_dir_of, parsed, read_run
from .storage import add_limits, limits_of

Begin = Callable[[], str]
EXIT_STATUSES = {"stopped": 130, "interrupted": 143}  # as shells give them for Ctrl-C and `kill`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting of TrainConfig as an option; what the file says is overruled by what is
    typed.
    """
    parser.add_argument(
        "--config", type=Path, help="settings; lora-scripts' and kohya's names are understood"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=(
            "begin with this preset, one of the package's or of yours, or a preset's file; what the"
            " file and the options say goes before"
        ),
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="where jobs are kept (default: train_lora in the output folder)",
    )
    parser.add_argument(
        "--new",
        action="store_true",
        help="begin anew where an unfinished run of these settings would be gone on with",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help=(
            "go on with a job of this output_name, the one that is furthest unless --job says"
            " which; epochs, max_train_steps, learning_rate and the like may have changed"
        ),
    )
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="the same, though pictures, captions or versions have changed meanwhile",
    )
    parser.add_argument(
        "--job", metavar="ID", help="with --resume: go on with this job; `jobs` lists them"
    )
    add_limits(parser)
    for setting in all_settings():
        _add_option(parser, setting)


def _add_option(parser: argparse.ArgumentParser, setting: Setting) -> None:
    """Add a setting as an option, in both spellings; `Setting.read` reads its text."""
    spellings = dict.fromkeys((f"--{setting.name.replace('_', '-')}", f"--{setting.name}"))
    is_switch = setting.type is bool
    parser.add_argument(
        *spellings,
        dest=setting.name,
        metavar=setting.type.__name__.upper(),
        nargs="?" if is_switch else None,
        const="true" if is_switch else None,
        help=_option_help(setting).replace("%", "%%"),
    )


def _option_help(setting: Setting) -> str:
    text = setting.help
    if setting.minimum is not None:
        text += f" [{setting.minimum:g} to {setting.maximum:g}]"
    if setting.choices:
        text += f" ({', '.join(setting.choices)})"
    return f"{text} (default: {_default_text(setting.default)})"


def _default_text(default: SettingValue) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default) if default != "" else "none"


def run(args: argparse.Namespace, make_host: Callable[..., Host]) -> int:
    """Run the command; return 0, or 130 after Ctrl-C, which saves what was learned, or 143 after
    `kill`, which keeps the progress. Raises `Refused`.
    """
    values = read_run(args)
    config = parsed(values, args.config)
    if not config.base_model:
        raise Refused(
            "Without a WebUI a checkpoint is needed: give base_model, a .safetensors file.",
            field="base_model",
        )
    output = Path(config.output_dir or "output")
    host = make_host(
        checkpoint=Path(config.base_model),
        lora_dir=output,
        data_dir=args.data_dir or data_dir_of(output),
    )
    service = TrainingService(host, limits=limits_of(args))
    config = TrainConfig.parse(at_model_size(values, host))
    if args.resume or args.resume_anyway or args.job:
        chosen = _job_to_resume(service, config.output_name, args.job)
        job = _resume(service, config, chosen, anyway=args.resume_anyway)
    else:
        job = _begin_or_go_on(service, config, anew=args.new)
    return _report(job, args.config)


def _begin_or_go_on(service: TrainingService, config: TrainConfig, *, anew: bool) -> JobView:
    """Go on with the newest job of this LoRA if it is unfinished, unless `anew`; else begin one."""
    earlier = _newest(service, config)
    if earlier and _is_unfinished(earlier) and not anew:
        return _go_on(service, config, earlier)
    _refuse_taken(service, config, earlier)
    _say_what_was_lost(service, config)
    return run_job(service, config.to_dict())


def run_job(service: TrainingService, values: WrittenSettings) -> JobView:
    """Run a job to its end behind a progress bar; Ctrl-C stops it, and what it has learned is
    saved.
    """
    plan = service.planner.plan(values)
    for error in plan["errors"]:
        raise Refused(
            error["message"] + _options(error.get("remedies", [])),
            field=error["field"],
            code=error["code"],
        )
    for warning in plan["warnings"]:
        remedies = [each for each in plan["advice"] if each["message"] == warning]
        print(f"note: {warning}{_options(remedies)}")
    counts = (
        counted(plan["pictures"], "picture"),
        counted(len(plan["buckets"]), "bucket"),
        counted(plan["steps"], "step"),
    )
    print(f"{', '.join(counts)} → {plan['output_file']}")
    return _follow(service, lambda: service.start(values, ahead_of_queue=True), steps=plan["steps"])


def _options(remedies: Sequence[RemedyView]) -> str:
    """Return what to type to set something right, in brackets; "" where nothing is known."""
    typed = [
        " ".join(
            f"--{name.replace('_', '-')} {_typed(value)}"
            for name, value in remedy["changes"].items()
        )
        for remedy in remedies
    ]
    return f" ({', or '.join(typed)})" if typed else ""


def _typed(value: SettingValue) -> str:
    """Return a setting's value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _job_to_resume(service: TrainingService, name: str, job_id: str | None) -> JobView:
    """Return the job that is asked for, or the one of this name that is furthest. Raises
    `Refused`.
    """
    jobs = service.jobs_of_lora(name)
    if job_id is not None:
        job = service.job(job_id)
        if job["kind"] != "training" or job["name"] != name:
            raise Refused(
                f"Job {job_id} makes {job['name']}, and the settings are for {name}. Give the job's"
                " own settings.",
                code=ErrorCode.NOT_FOUND,
            )
        return job
    if not jobs:
        raise Refused(
            f"There is nothing to resume: no job in {service.host.data_dir} makes a LoRA called"
            f" {name!r}. Start it without --resume.",
            code=ErrorCode.NOT_FOUND,
        )
    return _furthest(jobs) or jobs[0]


def _furthest(jobs: Sequence[JobView]) -> JobView | None:
    """Return the job that has most to go on from: an unfinished one if there is one, then the
    highest step, then the newest.
    """
    return max(
        (job for job in jobs if job["resumable"]),
        key=lambda job: (_is_unfinished(job), job["resume_step"] or 0, int(job["id"])),
        default=None,
    )


def _is_unfinished(job: JobView) -> bool:
    return bool(job["resume_step"]) and job["state"] != "finished"


def _newest(service: TrainingService, config: TrainConfig) -> JobView | None:
    """Return the newest job that made, or was making, the LoRA of these settings. Raises `Refused`
    while one is at work on it.
    """
    place = Path(config.output_dir or service.host.lora_dir).resolve()
    jobs = [
        job
        for job in service.jobs_of_lora(config.output_name)
        if Path(job["config"].get("output_dir") or service.host.lora_dir).resolve() == place
    ]
    if working := next((job for job in jobs if job["state"] in STARTED), None):
        raise Refused(
            f"Job {working['id']} is training {config.output_name} just now, in another program."
            " Wait until it has ended, or stop it there.",
            code=ErrorCode.BUSY,
        )
    return next((job for job in jobs if job["state"] == "finished" or _is_unfinished(job)), None)


def _go_on(service: TrainingService, config: TrainConfig, earlier: JobView) -> JobView:
    """Go on with the unfinished run of these settings, or say what has changed since and what to
    do.
    """
    try:
        return _resume(
            service,
            config,
            earlier,
            anyway=False,
            why=f", as these settings were {earlier['state']} there; --new begins anew",
        )
    except Refused as error:
        if error.code == ErrorCode.CANNOT_RESUME and error.details.get("anyway_possible"):
            ways = "--resume-anyway goes on all the same, --new begins anew"
        elif error.code in (ErrorCode.CANNOT_RESUME, ErrorCode.BAD_VALUE):
            ways = "--new begins anew"
        else:
            raise
        raise Refused(
            f"Job {earlier['id']}, an earlier run of {config.output_name}, was {earlier['state']}"
            f" at step {earlier['resume_step']}. {error.message} Or: {ways}.",
            field=error.field,
            code=error.code,
            details=error.details,
        ) from error


def _say_what_was_lost(service: TrainingService, config: TrainConfig) -> None:
    """Say so where the last run was cut off before its progress was kept, so that there is nothing
    to go on from.
    """
    last = next(iter(service.jobs_of_lora(config.output_name)), None)
    if last and last["state"] == "interrupted" and not last["resume_step"]:
        print(
            f"note: job {last['id']} was cut off before its progress was kept (every"
            f" {config.save_state_minutes:g} minutes), so it begins anew"
        )


def _refuse_taken(service: TrainingService, config: TrainConfig, earlier: JobView | None) -> None:
    """Raise `Refused` for a LoRA that exists, and say which job made it and what to do."""
    errors = service.planner.plan(config.to_dict(), thorough=False)["errors"]
    taken = next((error for error in errors if error["code"] == ErrorCode.NAME_TAKEN), None)
    if taken is None:
        return
    made_by = longer = ""
    if earlier is not None and earlier["state"] == "finished":
        made_by = f" Job {earlier['id']} finished it after {earlier.get('step') or 0} steps."
        length = "--max-train-steps" if config.max_train_steps else "--epochs"
        longer = f"; to train it longer: --resume and more {length}"
    free_names = [each["changes"]["output_name"] for each in taken.get("remedies", [])]
    other = free_names[0] if free_names else "and another name"
    raise Refused(
        f"{taken['message']}{made_by} To replace it: --overwrite; to keep both: --output-name"
        f" {other}{longer}.",
        field="output_name",
        code=ErrorCode.NAME_TAKEN,
    )


def _resume(
    service: TrainingService,
    config: TrainConfig,
    earlier: JobView,
    *,
    anyway: bool,
    why: str = "",
) -> JobView:
    """Go on with a job, with the settings as they are now."""
    changes = service.changes_since(earlier["id"], config.to_dict())
    # as if to overwrite: its own LoRA is in nobody's way
    plan = service.planner.plan({**config.to_dict(), "overwrite": True})
    steps = plan.get("steps") or earlier.get("total_steps") or 0
    step = earlier["resume_step"] or 0

    def begin() -> str:
        service.resume(earlier["id"], changes, anyway=anyway, ahead_of_queue=True)
        changed = ", ".join(f"{name} {value}" for name, value in changes.items())
        with_changes = f" with {changed}" if changes else ""
        state = "" if why else f" ({earlier['state']})"
        place = f"going on at step {step} of {steps}"
        print(f"job {earlier['id']}{state}: {place}{with_changes}{why}")
        return earlier["id"]

    return _follow(service, begin, steps=steps, step=step)


def _follow(service: TrainingService, begin: Begin, *, steps: int, step: int = 0) -> JobView:
    """Begin a job and show its progress until it ends; raises `Refused` when it fails."""
    job: JobView | None = None

    def stop_sentence() -> str:
        if _draws_preview(job):
            ends = "The preview is left out; the LoRA is saved."
        else:
            ends = "Stopping after this step; what was learned is saved."
        return f"{ends} Ctrl-C again ends the program at once."

    with (
        asked_by_ctrl_c(stop_sentence) as stop_asked,
        asked_by_termination(lambda: "Keeping the progress after this step.") as terminated,
    ):
        job_id = begin()
        preview_announced = False
        with show_progress(steps, unit="step", done=step) as display:
            while (job := service.wait(job_id, timeout=0.5))["state"] in ALIVE:
                _show(display, job)
                if _draws_preview(job) and not preview_announced:
                    display.write("The LoRA is saved. Drawing its preview; Ctrl-C leaves it out.")
                    preview_announced = True
                if terminated():
                    service.close()
                elif stop_asked() and not job["stopping"]:
                    service.stop(job_id)
            _show(display, job, ended=job["state"])
    if job["state"] == "failed":
        raise Refused(job["error"], code=ErrorCode.FAILED)
    return job


def _draws_preview(job: JobView | None) -> bool:
    return job is not None and job["message"] == DRAWING


def _show(display: ProgressDisplay, job: JobView, *, ended: str = "") -> None:
    loss = job.get("loss_average")
    validation_loss = job.get("validation_loss")
    notes = [f"snapshot {name}" for name in job["snapshots"]]
    if validation_loss is not None:
        notes.append(f"validation loss {validation_loss:.4f}")
    progress = Progress(
        job.get("step", 0),
        (job.get("message") or job["state"])[:40],
        figures="" if loss is None else f"loss {loss:.4f}",
        notes=notes,
        ended=ended,
    )
    display.update(progress)


def _report(job: JobView, config: Path | None) -> int:
    """Print how a job ended and, where it can go on, how; return the exit status."""
    for warning in job["remarks"]:
        print(f"note: {warning}")
    nothing = "the progress is kept" if job["state"] == "interrupted" else "nothing to save yet"
    print(f"{job['state']}: {job['output_file'] or nothing}")
    if job["lora_tag"]:
        print(f"use it in a prompt: {job['lora_tag']}")
    if job["state"] not in EXIT_STATUSES:
        return 0
    command = "the same command with"
    if config:
        command = f"python -m lora_trainer train --config {config}"
    place = f"{job['state']} at step {job.get('step') or 0} of {job.get('total_steps') or 0}"
    print(f"{place}; to go on: {command} --resume --job {job['id']}")
    return EXIT_STATUSES[job["state"]]
