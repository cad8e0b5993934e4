"""The whole story of a run: plan, borrow the model, encode, attach adapters, train, save, register. Read this first."""
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import cache, export, precision, trainer
from .adapters import Adapters
from .config import TrainConfig
from .contracts import BaseModel, Host, Progress
from .errors import Stopped
from .optimization import make_optimizer, make_schedule
from .plan import Plan, check_space, estimate, make_plan

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run left behind. `output_file` is None when it was stopped before its first step."""
    output_file: Path | None
    lora_tag: str
    steps: int
    loss_average: float | None
    stopped: bool


def train_lora(config: TrainConfig, host: Host, *, on_progress: Callable[[Progress], None] = lambda progress: None,
               should_stop: Callable[[], bool] = lambda: False) -> Result:
    """Train a LoRA as `config` says on the model that `host` lends, and make it callable.

    Raises `Refused`, with a sentence for the user, when something is wrong with the input; the base model is as before in any case.
    """
    started = time.monotonic()
    plan = make_plan(config, lora_dir=host.lora_dir)
    for warning in plan.warnings:
        log.warning(warning)
    try:
        with host.borrow_model() as base_model:
            run = _Run(config, plan, base_model, host, on_progress, should_stop, started)
            outcome = run.train()
            saved, last_progress = run.finish(outcome), run.last_progress
            del run                                                                # and with it the adapters, before pictures are drawn
    except Stopped:
        return Result(None, plan.lora_tag, 0, None, True)
    if saved and config.preview and not should_stop():
        on_progress(dataclasses.replace(last_progress, message="Drawing the preview"))
        _draw_preview(plan, host, saved)
    return Result(saved, plan.lora_tag, outcome.steps, outcome.loss_average, outcome.stopped)


def _draw_preview(plan: Plan, host: Host, saved: Path) -> None:
    """Give the card a picture of the first caption. The LoRA is ready already, so a failure here is only logged."""
    bucket = plan.buckets[0]
    try:
        picture = host.generate(f"{plan.captions[0]} {plan.lora_tag}", seed=plan.schedule.seed, width=bucket.width, height=bucket.height)
        if not export.save_preview(saved, picture):
            log.info("the card keeps the picture it has")
    except Exception as error:                                                     # an entry into the host's own code, which raises what it likes
        log.warning("no preview picture: %s", error, exc_info=True)


class _Run:
    """One run while the model is borrowed."""

    def __init__(self, config: TrainConfig, plan: Plan, base_model: BaseModel, host: Host, on_progress, should_stop, started: float) -> None:
        self.config, self.plan, self.base_model, self.host = config, plan, base_model, host
        self.on_progress, self.should_stop, self.started, self.started_at = on_progress, should_stop, started, time.time()
        self.adapters: Adapters | None = None
        self.last_progress = Progress("preparing")

    def train(self) -> trainer.Outcome:
        config, plan, base_model = self.config, self.plan, self.base_model
        dtype = precision.resolve(config.mixed_precision, device=base_model.device, weights=base_model.dtype)
        check_space(plan.output_file, estimate(plan, config, base_model.unet)["file_bytes"])
        log.info("base model %s (%s, %s), %d pictures, %d steps, computing in %s on %s", base_model.name, base_model.family, base_model.prediction_type,
                 len(plan.pictures), plan.schedule.total_steps, dtype, base_model.device)
        encoded = self._encode()
        self.adapters = Adapters.create(base_model.unet, targets=config.lora_targets, rank=config.lora_rank, alpha=config.lora_alpha,
                                        dropout=config.lora_dropout, seed=config.seed)
        optimizer = make_optimizer(config.optimizer, self.adapters.parameters(), learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        rates = make_schedule(config.scheduler, optimizer, warmup_steps=config.lr_warmup_steps, total_steps=plan.schedule.total_steps)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.adapters.attached())
            stack.enter_context(precision.safe_attention(base_model.device, dtype))
            stack.enter_context(precision.gradient_checkpointing(base_model.unet, config.gradient_checkpointing))
            return trainer.run(base_model, self.adapters, encoded, plan.schedule, optimizer=optimizer, learning_rates=rates, dtype=dtype,
                               max_grad_norm=config.max_grad_norm, on_step=self._report, after_step=self._snapshot, should_stop=self.should_stop,
                               give_way=self.host.give_way)

    def finish(self, outcome: trainer.Outcome) -> Path | None:
        """Save and register the LoRA; None when no step was made."""
        if not outcome.steps:
            return None
        finished = time.monotonic()
        saved = self.save(self.plan.output_file, outcome.steps, outcome.loss_average)
        self.host.register(saved)
        log.info("%s is ready %.2f s after the last step", self.plan.lora_tag, time.monotonic() - finished)
        return saved

    def save(self, path: Path, steps: int, loss_average: float | None) -> Path:
        """Save what the adapters know now, with its metadata and card."""
        config, plan, base_model = dataclasses.replace(self.config, output_name=path.stem), self.plan, self.base_model
        tensors = export.to_tensors(self.adapters.weights(), alpha=self.adapters.alpha, export_name=base_model.export_name,
                                    dtype=export.DTYPES[config.save_precision])
        export.save(path, tensors, export.metadata(config, base_model, plan.pictures, plan.buckets, plan.captions, steps=steps,
                                                   total_steps=plan.schedule.total_steps, steps_per_epoch=plan.schedule.steps_per_epoch,
                                                   started_at=self.started_at, loss_average=loss_average))
        notes = f"Trained with Train LoRA on {base_model.name}: {len(plan.pictures)} pictures, {steps} steps, rank {config.lora_rank}."
        try:
            export.save_card(path, family=base_model.family, trigger_word=config.trigger_word, preferred_weight=config.preferred_weight, notes=notes)
        except OSError as error:
            log.warning("the LoRA is saved, but its card %s could not be written: %s", path.with_suffix(".json").name, error)
        return path

    def _encode(self) -> list[cache.Encoded]:
        began = time.monotonic()
        encoded = cache.encode(self.base_model, self.plan.pictures, self.plan.buckets, self.plan.captions, mirror=self.config.mirror,
                               random_crop=self.config.random_crop, should_stop=self.should_stop,
                               on_progress=lambda done, total: self.on_progress(Progress("preparing", f"Encoding picture {done} of {total}", done / total)))
        self.encoding_seconds = time.monotonic() - began
        return encoded

    def _report(self, progress: Progress) -> None:
        if progress.step == 1:
            elapsed = time.monotonic() - self.started
            log.info("first step done %.2f s after the start, of which encoding took %.2f s", elapsed, self.encoding_seconds)
        self.last_progress = progress
        self.on_progress(progress)

    def _snapshot(self, step: int) -> None:
        """Save and register `name-000100` every `save_steps` steps; the last step is saved under the name itself."""
        every = self.config.save_steps
        if every and step % every == 0 and step < self.plan.schedule.total_steps:
            path = self.plan.output_file.with_name(f"{self.plan.output_file.stem}-{step:06}.safetensors")
            self.save(path, step, self.last_progress.loss_average)
            self.host.register(path)
            log.info("saved the snapshot %s", path.name)
