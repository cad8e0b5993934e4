"""The whole of a run: plan, borrow the model, prepare, train, give the model back, save, register.
Read this first.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from pathlib import Path

from ..base.contracts import CheckpointId, Host
from ..base.control import Control
from ..base.errors import ErrorCode, NotFinite, OutOfMemory, Refused, Stopped
from ..lora import save
from ..settings.config import TrainConfig
from ..training import loop, state_files
from ..training.recovery import Recovery
from ..training.state_files import State
from .callbacks import RunCallbacks
from .context import RunContext
from .facts import RunFacts, run_facts, saved_facts
from .give_way import GiveWay
from .lora_writer import LoraWriter
from .output_files import OutputFiles, tag_of
from .plan import Plan, make_plan
from .prepare import PreparedRun, prepare_run
from .progress import ProgressReporter
from .registering import register
from .resume import check_changes, check_readable, compare_runs, state_folder
from .step_options import caption_augmentation

log = logging.getLogger(__name__)
DRAWING = "Drawing the preview"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run left behind. `output_file` is None when it was stopped before its first step;
    `lora_tag` is empty when it had to be saved where no prompt finds it; `warnings` are sentences
    for the user.
    """

    output_file: Path | None
    lora_tag: str
    steps: int
    loss_average: float | None
    stopped: bool
    warnings: tuple[str, ...] = ()


def train_lora(
    config: TrainConfig,
    host: Host,
    *,
    control: Control | None = None,
    reporter: ProgressReporter | None = None,
    folder: Path | None = None,
    resume: bool = False,
    anyway: bool = False,
    checkpoint: CheckpointId | None = None,
) -> Result:
    """Train a LoRA as `config` says on the model that `host` lends, and make it callable.

    `folder` is where the run keeps its training states. With `resume` it goes on from the newest of
    them, or from the start where there is none; with `anyway` even though things have changed
    since. Where another checkpoint than `checkpoint`, or than that of the state, is loaded, it
    waits. Raises `Refused`, with a sentence for the user; the base model is as before in any case.
    """
    earlier, warnings = None, []
    if folder and resume:
        earlier = state_files.latest(state_folder(folder))
        warnings = check_readable(folder, found=earlier is not None, anyway=anyway)
    context = _plan_run(
        config,
        host,
        control=control or Control(),
        reporter=reporter or ProgressReporter(),
        folder=folder,
        earlier=earlier,
        anyway=anyway,
    )
    try:
        facts = _examine(context, warnings, checkpoint)
        result = _train_and_save(context, facts)
    except Stopped:
        return _interrupted(context)
    except OutOfMemory as error:
        _put_back(context)
        raise Refused(
            f"{error} Nothing is left to save memory with: lower the resolution or the rank, or"
            " close other programs.",
            code=ErrorCode.OUT_OF_MEMORY,
        ) from error
    except BaseException:
        _put_back(context)
        raise
    if result.output_file and result.lora_tag and config.preview:
        _draw_preview(context, result.output_file, result.lora_tag)
    return result


def _interrupted(context: RunContext) -> Result:
    """Return the result of a run that left no LoRA: how far it is, by what it reported last."""
    status, earlier = context.reporter.status, context.earlier
    return Result(
        output_file=None,
        lora_tag=context.plan.lora_tag,
        steps=status.step or (earlier.step if earlier else 0),
        loss_average=status.loss_average,
        stopped=True,
        warnings=status.warnings,
    )


def _plan_run(
    config: TrainConfig,
    host: Host,
    *,
    control: Control,
    reporter: ProgressReporter,
    folder: Path | None,
    earlier: State | None,
    anyway: bool,
) -> RunContext:
    """Plan the run, or what is left of it after the state `earlier`."""
    session_id = saved_facts(earlier)["session"] if earlier else None
    plan = make_plan(config, lora_dir=host.lora_dir, session_id=session_id)
    for warning in plan.warnings:
        log.warning(warning)
    session_id = session_id or time.time()
    return RunContext(
        config,
        plan,
        host,
        control=control,
        reporter=reporter,
        output=OutputFiles(
            plan.output_file, folder, session_id=session_id, overwrite=config.overwrite
        ),
        states=state_folder(folder) if folder else None,
        session_id=session_id,
        earlier=earlier,
        anyway=anyway,
    )


def _examine(context: RunContext, warnings: list[str], checkpoint: CheckpointId | None) -> RunFacts:
    """Do what needs no model: look at the pictures, compare them with those of an earlier part of
    the run, and wait for the checkpoint. Return what the training states say of the run.
    """
    reporter, plan, earlier = context.reporter, context.plan, context.earlier
    context.output.clear_leftovers()
    reporter.update(
        message="Looking at the pictures",
        checkpoint=checkpoint.name if checkpoint else "",
        pictures=plan.count("train"),
        total_steps=plan.schedule.total_steps,
    )
    facts = run_facts(context.config, plan, should_stop=context.control.should_stop)
    if earlier:
        before = saved_facts(earlier)
        model = before["base_model"]
        checkpoint = CheckpointId(model["name"], model["sha256"])
        reporter.update(
            checkpoint=checkpoint.name,
            step=earlier.step,
            state_step=earlier.step,
            snapshots=tuple(before["snapshots"]),
        )
        changes = compare_runs(before, facts)
        warnings = [*warnings, *check_changes(changes, anyway=context.anyway)]
    for warning in warnings:
        reporter.warn(warning)
    give_way = GiveWay(context, stage="preparing")
    if checkpoint and checkpoint.name and not give_way.wait_for_checkpoint(checkpoint):
        raise Stopped
    return facts


def _train_and_save(context: RunContext, facts: RunFacts) -> Result:
    """Borrow the model and train, then save and register the LoRA. When this returns, nothing of
    what was trained is in memory any more.
    """
    with context.host.borrow_model() as base_model:
        run = prepare_run(base_model, context, facts)
        _take_steps(context, run)
        writer = run.writer  # from here on the model is not needed
        del run
    step, total_steps = writer.train_state.step, context.plan.schedule.total_steps
    if context.control.interrupt_requested and step < total_steps:
        raise Stopped  # its state is kept, and goes on from there
    saved = _save(context, writer) if step else None
    return Result(
        output_file=saved,
        lora_tag=_lora_tag(context, saved),
        steps=step,
        loss_average=writer.train_state.loss_average,
        stopped=step < total_steps,
        warnings=context.reporter.status.warnings,
    )


def _take_steps(context: RunContext, run: PreparedRun) -> None:
    """Train to the end, or to where it is asked to stop; the progress is kept whatever happens."""
    config, callbacks = context.config, RunCallbacks(context, run)
    recovery = Recovery(
        run.patches,
        run.train_state,
        run.training_data,
        may_save_memory=config.when_memory_runs_out == "adapt",
        roll_back=callbacks.states.roll_back,
        warn=context.reporter.warn,
    )
    with run.patches.applied(), _live_lora(context, callbacks):
        try:
            loop.train(
                run.patches,
                run.train_state,
                run.training_data,
                callbacks=loop.LoopCallbacks(callbacks.before_step, callbacks.after_step),
                recovery=recovery,
                max_grad_norm=config.max_grad_norm,
            )
        except NotFinite as error:
            advice = _advice_on_not_finite(context.plan, error)
            raise Refused(f"{error} {advice}", code=ErrorCode.NOT_FINITE) from error
        finally:
            callbacks.states.save_at_end()


def _live_lora(
    context: RunContext, callbacks: RunCallbacks
) -> contextlib.AbstractContextManager[None]:
    """Let pictures that are drawn while this trains use the LoRA as it is then, if that is on."""
    if not context.config.live:
        return contextlib.nullcontext()
    return context.host.offer_live_lora(
        context.plan.output_file.stem, callbacks.snapshots.write_live
    )


def _save(context: RunContext, writer: LoraWriter) -> Path:
    """Save and register the LoRA, once the model is given back; return where it is."""
    reporter, began = context.reporter, time.monotonic()
    saved = context.output.write_final(
        writer.write, functools.partial(reporter.warn, about="snapshot")
    )
    if saved == context.output.path:
        reporter.withdraw_warning("snapshot")
    register(context, saved)
    log.info(
        "%s is ready %.2f s after the last step",
        tag_of(saved.stem, context.config.preferred_weight),
        time.monotonic() - began,
    )
    return saved


def _lora_tag(context: RunContext, saved: Path | None) -> str:
    """Return how a prompt calls the LoRA; "" where it was saved in a folder that prompts do not
    know.
    """
    planned = context.plan.output_file
    if saved and saved.parent != planned.parent:
        return ""
    return tag_of((saved or planned).stem, context.config.preferred_weight)


def _put_back(context: RunContext) -> None:
    """Put back the LoRA that a failed run wrote over; never hides why it failed."""
    try:
        if path := context.output.put_back():
            context.host.register(path)
    except Exception:  # an entry into the host's own code
        log.exception("what was there before the run could not be put back and made known")


def _draw_preview(context: RunContext, lora: Path, lora_tag: str) -> None:
    """Give the card a picture of the first caption. The LoRA is ready already, so a failure here is
    only logged.
    """
    plan, control = context.plan, context.control
    if control.should_stop():
        return
    context.reporter.update(message=DRAWING)
    caption = caption_augmentation(context.config).plain(plan.samples[0].caption)
    bucket = plan.samples[0].bucket
    try:
        picture = context.host.generate(
            f"{caption} {lora_tag}",
            seed=plan.schedule.seed,
            width=bucket.width,
            height=bucket.height,
            should_stop=control.should_stop,
        )
        if not save.save_preview(lora, picture):
            log.info("the card keeps the picture it has")
    except Stopped:
        log.info("no preview picture: it was not waited for")
    except Refused as refusal:
        log.info("no preview picture: %s", refusal.message)
    except Exception as error:  # an entry into the host's own code, which raises what it likes
        log.warning("no preview picture: %s", error, exc_info=True)


def _advice_on_not_finite(plan: Plan, error: NotFinite) -> str:
    """Name the pictures of the step that failed, and say what to try."""
    listed = ", ".join(
        f"{sample.picture.path.name} ({sample.caption[:80]!r})"
        for sample in (plan.samples[index] for index in error.pictures[:3])
    )
    more = f" and {len(error.pictures) - 3} more" if len(error.pictures) > 3 else ""
    return (
        f"Its pictures were {listed}{more}. Usually the learning rate is too high: try a"
        " tenth of it. Snapshots and the progress saved before are kept; with fp16, bf16 or fp32"
        " can help too."
    )
