"""The whole story of a run: plan, borrow the model, encode, attach adapters, train, save, register.
Read this first.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base.contracts import BaseModel, Host, Progress, Reading
from ..base.control import Control
from ..base.errors import NotFinite, OutOfMemory, Refused, Stopped
from ..lora import save
from ..lora.adapter_layers import AdapterSpec, RankAlpha
from ..lora.adapters import Adapters
from ..lora.load import fit_to_model
from ..lora.target_layers import assign_ranks, count_unet_levels
from ..settings.config import TrainConfig
from ..training import encoded_dataset, loop, precision
from ..training import state_files as checkpoints
from ..training.compute_mode import ComputeMode, describe_out_of_memory, is_out_of_memory
from ..training.conditioning import Texts
from ..training.model_patches import ModelPatches
from ..training.objective import Objective
from ..training.optimizers import (
    LearningRates,
    check_optimizer,
    check_rates,
    make_optimizer,
    remarks_on,
)
from ..training.parameter_groups import LOWER_HALF, UPPER_HALF, groups_of, own_settings, rates_of
from ..training.state_files import State
from ..training.train_state import TrainState, form_of_state, shapes_of_state
from . import lora_metadata
from .callbacks import ProgressReporter, RunCallbacks
from .give_way import Sharing
from .output_files import Output
from .plan import Plan, check_space, estimate, make_plan, tag_of
from .resume import (
    check_readable,
    compare_models,
    compare_runs,
    judge,
    model_facts,
    run_facts,
    state_folder,
)
from .step_options import form_of, layer_choice, rate_choice, variation_of

log = logging.getLogger(__name__)
DRAWING = "Drawing the preview"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run left behind. `output_file` is None when it was stopped before its first step;
    `lora_tag` is empty when it had to be saved where no prompt finds it; `remarks` are sentences
    for the user.
    """

    output_file: Path | None
    lora_tag: str
    steps: int
    loss_average: float | None
    stopped: bool
    remarks: tuple[str, ...] = ()


def train_lora(  # noqa: PLR0913
    config: TrainConfig,
    host: Host,
    *,
    control: Control | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    folder: Path | None = None,
    resume: bool = False,
    anyway: bool = False,
    checkpoint: str = "",
    checkpoint_sha256: str | None = None,
) -> Result:
    """Train a LoRA as `config` says on the model that `host` lends, and make it callable.

    `folder` is where the run keeps its states; with `resume` it goes on from the newest of them, or
    from the start where there is none, and `anyway` makes light of changes since. It waits for the
    checkpoint of that name and hash, if one is given or the run goes on, where another is loaded.
    Raises `Refused`, with a sentence for the user, when something is wrong; the base model is as
    before in any case.
    """
    control, earlier, remarks = control or Control(), None, []
    if folder and resume:
        earlier = checkpoints.latest(state_folder(folder))
        remarks = check_readable(folder, found=earlier is not None, anyway=anyway)
    plan = make_plan(
        config, lora_dir=host.lora_dir, session_id=earlier.facts["session"] if earlier else None
    )
    for warning in plan.warnings:
        log.warning(warning)
    run = _Run(config, plan, host, control, on_progress, folder, earlier, anyway)
    try:
        run.prepare(checkpoint, checkpoint_sha256, remarks)
        with host.borrow_model() as base_model:
            run.train(base_model)
        if control.interrupt_asked and run.is_unfinished:
            raise Stopped  # its state is kept, and goes on from there
        saved = run.finish()
    except Stopped:
        return Result(None, plan.lora_tag, earlier.step if earlier else 0, None, True)
    except OutOfMemory as error:
        run.undo()
        raise Refused(
            f"{error} Nothing is left to save memory with: lower the resolution or the rank, or"
            " close other programs.",
            code="out_of_memory",
        ) from error
    except BaseException:
        run.undo()
        raise
    result = run.result(saved)
    del run.train_state  # and with it the adapters, before pictures are drawn
    if saved and result.lora_tag and config.preview and not control.should_stop():
        run.reporter.tell(message=DRAWING)
        _draw_preview(
            plan,
            host,
            saved,
            f"{variation_of(config).plain(plan.captions[0])} {result.lora_tag}",
            should_stop=control.should_stop,
        )
    return result


def _draw_preview(
    plan: Plan, host: Host, saved: Path, prompt: str, *, should_stop: Callable[[], bool]
) -> None:
    """Give the card a picture of the first caption. The LoRA is ready already, so a failure here is
    only logged.
    """
    bucket = plan.buckets[0]
    try:
        picture = host.generate(
            prompt,
            seed=plan.schedule.seed,
            width=bucket.width,
            height=bucket.height,
            should_stop=should_stop,
        )
        if not save.save_preview(saved, picture):
            log.info("the card keeps the picture it has")
    except Stopped:
        log.info("no preview picture: it was not waited for")
    except Refused as refusal:
        log.info("no preview picture: %s", refusal.message)
    except Exception as error:  # an entry into the host's own code, which raises what it likes
        log.warning("no preview picture: %s", error, exc_info=True)


class _Run:
    """One run while the model is borrowed."""

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        host: Host,
        control: Control,
        on_progress: Callable[[Progress], None],
        folder: Path | None,
        earlier: State | None,
        anyway: bool,
    ) -> None:
        self.config, self.plan, self.host, self.control, self.earlier, self.anyway = (
            config,
            plan,
            host,
            control,
            earlier,
            anyway,
        )
        self.states = state_folder(folder) if folder else None
        self.session_id = earlier.facts["session"] if earlier else time.time()
        self.started = time.monotonic()
        self.output = Output(
            plan.output_file, folder, session_id=self.session_id, overwrite=config.overwrite
        )
        self.reporter = ProgressReporter(on_progress)
        self.sharing = Sharing(
            host, control, share=config.sharing == "share", tell=self._tell_waiting
        )
        self.train_state: TrainState | None = None

    def prepare(self, checkpoint: str, sha256: str | None, remarks: list[str]) -> None:
        """Do what needs no model: look at the pictures, compare with before, wait for the
        checkpoint. Raises `Refused` and `Stopped`.
        """
        self.output.clear_leftovers()
        self.reporter.tell(
            message="Looking at the pictures",
            checkpoint=checkpoint,
            pictures=self.plan.count("train"),
            total_steps=self.plan.schedule.total_steps,
        )
        self.facts = run_facts(self.config, self.plan, should_stop=self.control.should_stop)
        if self.earlier:
            before = self.earlier.facts
            checkpoint, sha256 = before["base_model"]["name"], before["base_model"]["sha256"]
            self.reporter.tell(
                checkpoint=checkpoint,
                step=self.earlier.step,
                state_step=self.earlier.step,
                snapshots=tuple(before["snapshots"]),
            )
            remarks = [*remarks, *judge(compare_runs(before, self.facts), anyway=self.anyway)]
        for remark in remarks:
            self.reporter.remark(remark)
        if checkpoint and not self.sharing.wait_for_checkpoint(checkpoint, sha256):
            raise Stopped

    def train(self, base_model: BaseModel) -> None:
        """Train to the end, or to where it is told to stop; the progress is kept whatever
        happens.
        """
        self.base_model = base_model
        self._read_model()
        self._check_model()
        chosen = self._chosen_compute_mode()
        compute_mode = (
            chosen.with_overrides(self.earlier.facts["forced"], base_model.dtype)
            if self.earlier
            else chosen
        )
        log.info("computing in %s on %s", compute_mode.dtype, base_model.device)
        encoded = self._encode()
        elapsed_seconds = self._encoding_seconds + (
            self.earlier.facts["elapsed_seconds"] if self.earlier else 0.0
        )
        self.train_state = self._make_train_state(compute_mode)
        patches = ModelPatches(base_model, self.train_state.adapters, compute_mode)
        callbacks = RunCallbacks(
            self.config,
            self.plan.schedule,
            self.host,
            self.control,
            patches=patches,
            train_state=self.train_state,
            output=self.output,
            write=self.write,
            facts=self.facts,
            states=self.states,
            sharing=self.sharing,
            reporter=self.reporter,
            chosen=chosen,
            elapsed_seconds=elapsed_seconds,
        )
        with patches.opened(), self._offered(callbacks):
            try:
                self._take_steps(patches, self._training_data(encoded), callbacks)
            finally:
                callbacks.keep()

    def finish(self) -> Path | None:
        """Save and register the LoRA, once the model is given back; None when no step was made."""
        if not self.train_state.step:
            return None
        began = time.monotonic()
        saved = self.output.write_at_last(
            self.write, functools.partial(self.reporter.remark, about="snapshot")
        )
        if saved == self.output.path:
            self.reporter.withdraw("snapshot")
        try:
            self.host.register(saved)
        except Exception as error:  # an entry into the host's own code; the LoRA is saved
            log.exception("registering failed")
            self.reporter.remark(
                f"The LoRA is saved, but could not be made known ({error}). Press the refresh"
                " button of the Lora cards."
            )
        log.info(
            "%s is ready %.2f s after the last step",
            tag_of(saved.stem, self.config.preferred_weight),
            time.monotonic() - began,
        )
        return saved

    def write(self, path: Path) -> None:
        """Write the LoRA as it is now, with its metadata and card; raises `Refused`."""
        config, plan, train_state, base_model = (
            dataclasses.replace(self.config, output_name=path.stem),
            self.plan,
            self.train_state,
            self.base_model,
        )
        adapters = train_state.adapters
        tensors = save.to_tensors(
            train_state.weights_to_save(),
            alphas=adapters.alphas,
            export_name=base_model.export_name,
            dtype=save.DTYPES[config.save_precision],
        )
        save.save(
            path,
            tensors,
            lora_metadata.metadata(
                config,
                base_model,
                adapters.rank_alphas,
                adapters.spec,
                plan,
                steps=train_state.step,
                started_at=self.session_id,
                loss_average=train_state.loss_average,
            ),
        )
        notes = (
            f"{save.NOTES} on {base_model.name}: {plan.count('train')} pictures, {train_state.step}"
            f" steps, rank {next(iter(adapters.rank_alphas.values())).rank}."
        )
        try:
            save.save_card(
                path,
                family=base_model.family,
                trigger_word=config.trigger_word,
                preferred_weight=config.preferred_weight,
                notes=notes,
                negative_text=config.negative_text,
            )
        except OSError as error:
            log.warning(
                "the LoRA is saved, but its card %s could not be written: %s",
                path.with_suffix(".json").name,
                error,
            )

    @property
    def is_unfinished(self) -> bool:
        return (
            self.train_state is not None and self.train_state.step < self.plan.schedule.total_steps
        )

    def result(self, saved: Path | None) -> Result:
        step = self.train_state.step
        elsewhere = saved is not None and saved.parent != self.plan.output_file.parent
        return Result(
            saved,
            (
                ""
                if elsewhere
                else tag_of((saved or self.plan.output_file).stem, self.config.preferred_weight)
            ),
            step,
            self.train_state.loss_average,
            step < self.plan.schedule.total_steps,
            self.reporter.now.remarks,
        )

    def undo(self) -> None:
        """The run failed: what it wrote over on its way is put back. Never hides why it failed."""
        try:
            if back := self.output.put_back():
                self.host.register(back)
        except Exception:  # entry into the host's own code
            log.exception("what was there before the run could not be put back and made known")

    # --- Before the first step --------------------------------------------------------------------

    def _read_model(self) -> None:
        """Take the model as the settings say, and refuse what it cannot do then."""
        config, base_model = self.config, self.base_model
        base_model.read_as(
            Reading(
                clip_skip=config.clip_skip,
                prediction_type="" if config.prediction_type == "auto" else config.prediction_type,
                zero_terminal_snr={"auto": None, "on": True, "off": False}[
                    config.zero_terminal_snr
                ],
                max_token_length=config.max_token_length,
                weighted_captions=config.weighted_captions,
            )
        )
        if base_model.zero_terminal_snr and base_model.prediction_type == "epsilon":
            raise Refused(
                "Zero terminal SNR: a model that predicts noise learns nothing from pure noise. Set"
                " it to off, or The model predicts to v_prediction.",
                field="zero_terminal_snr",
                code="bad_value",
            )
        if config.train_text_encoder and not base_model.text_encoders:
            raise Refused(
                "This checkpoint has no text encoder that can learn.",
                field="train_text_encoder",
                code="bad_value",
            )
        self.layers = self._layers()
        if config.train_text_encoder and not self._trains_text_encoder():
            self.reporter.remark(
                "Nothing of the text encoder learns, although it is switched on: the blocks or the"
                " LoRA that is gone on from leave it out."
            )
        if self._texts().change and not base_model.encodes_between_steps:
            raise Refused(
                "The WebUI was started with --medvram, which keeps the text encoder off the GPU"
                " while the UNet is there. Switch off training of the text encoder and everything"
                " that varies captions (shuffling, dropout, trigger word alone), or start it"
                " without.",
                field="train_text_encoder" if config.train_text_encoder else "shuffle_caption",
                code="medvram",
            )
        check_optimizer(config.optimizer, config.optimizer_args, base_model.device)
        shapes, _, form = self.layers
        names = dict.fromkeys((LOWER_HALF, UPPER_HALF) if form.kind == "lora" else (LOWER_HALF,))
        groups = groups_of(
            dict.fromkeys(shapes, names),
            rate_choice(config),
            levels=count_unet_levels(base_model.parts()),
        )
        check_rates(config.optimizer, rates_of(groups, rate_choice(config)))

    def _check_model(self) -> None:
        """Check that the run is possible on this model and, if it goes on, the same."""
        base_model, plan = self.base_model, self.plan
        check_space(plan.output_file, estimate(plan, self.config, base_model.parts())["file_bytes"])
        self.facts |= {"base_model": model_facts(base_model), "session": self.session_id}
        self.reporter.tell(message="Preparing", checkpoint=base_model.name)
        if self.earlier:
            for remark in judge(
                compare_models(self.earlier.facts["base_model"], self.facts["base_model"]),
                anyway=self.anyway,
            ):
                self.reporter.remark(remark)
        log.info(
            "base model %s (%s, %s), %d pictures, %d steps%s",
            base_model.name,
            base_model.family,
            base_model.prediction_type,
            len(plan.pictures),
            plan.schedule.total_steps,
            f", going on after step {self.earlier.step}" if self.earlier else "",
        )

    def _chosen_compute_mode(self) -> ComputeMode:
        dtype = precision.resolve(
            self.config.mixed_precision,
            device=self.base_model.device,
            weights=self.base_model.dtype,
        )
        return ComputeMode(dtype, gradient_checkpointing=self.config.gradient_checkpointing)

    def _encode(self) -> list[encoded_dataset.Encoded]:
        """Encode the pictures, again if the VAE or the clip skip was changed while others had the
        model.
        """
        config, plan, began, key = self.config, self.plan, time.monotonic(), None
        while key != self.base_model.encoding_key():
            key = self.base_model.encoding_key()
            try:
                encoded = encoded_dataset.encode(
                    self.base_model,
                    plan.pictures,
                    plan.buckets,
                    plan.captions,
                    plan.roles,
                    mirror=config.mirror,
                    random_crop=config.random_crop,
                    color_jitter=config.color_jitter,
                    masked_loss=config.masked_loss,
                    masked_loss_floor=config.masked_loss_floor,
                    prior_loss_weight=config.prior_loss_weight,
                    with_captions=not self._texts().change,
                    seed=config.seed,
                    between=self._between_pictures,
                    on_progress=self._tell_encoding,
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemory(0, describe_out_of_memory(error)) from None
        self._encoding_seconds = time.monotonic() - began
        return encoded

    def _between_pictures(self) -> bool:
        return not self.control.should_stop() and (
            not self.sharing.is_wanted() or self.sharing.give_way(0)
        )

    def _make_train_state(self, compute_mode: ComputeMode) -> TrainState:
        config, base_model = self.config, self.base_model
        shapes, weights, form = self.layers
        adapters = Adapters.create(base_model.parts(), shapes, form, seed=config.seed)
        choice = rate_choice(config)
        groups = groups_of(
            adapters.named_parameters(), choice, levels=count_unet_levels(base_model.parts())
        )
        learning_rates = rates_of(groups, choice)
        for remark in remarks_on(
            config.optimizer,
            learning_rates={group.part: choice.rates()[group.part] for group in groups},
            scheduler=config.scheduler,
        ):
            if remark not in self.plan.warnings:  # which have said it before
                self.reporter.remark(remark)
        for group, parameters in groups.items():
            for parameter in (
                parameters if learning_rates[group.name] == 0 else ()
            ):  # they stay as they are, and their gradients are nobody's business
                parameter.requires_grad_(False)
        optimizer = make_optimizer(
            config.optimizer,
            {group.name: parameters for group, parameters in groups.items()},
            learning_rates=learning_rates,
            weight_decay=config.weight_decay,
            arguments=config.optimizer_args,
            own=own_settings(groups),
        )
        rates = LearningRates(
            config.scheduler,
            optimizer,
            warmup_steps=config.lr_warmup_steps,
            total_steps=self.plan.schedule.total_steps,
            cycles=config.scheduler_cycles,
            power=config.scheduler_power,
        )
        if weights:
            adapters.load(weights)
        train_state = TrainState(
            adapters,
            optimizer,
            rates,
            device=base_model.device,
            dtype=compute_mode.dtype,
            ema_decay=config.ema_decay,
            scale_weight_norms=config.scale_weight_norms,
        )
        if self.earlier:
            train_state.restore(self.earlier)
            self.earlier = dataclasses.replace(
                self.earlier, tensors={}
            )  # they live in the train state now
        return train_state

    def _layers(self) -> tuple[Mapping[str, RankAlpha], Mapping[str, Any], AdapterSpec]:
        """Return the layers that learn with rank and alpha, the weights they begin with, if not
        with new ones, and what kind they are.
        """
        config, parts = self.config, self.base_model.parts()
        chosen = form_of(config)
        dropouts = {
            name: getattr(chosen, name) for name in ("dropout", "rank_dropout", "module_dropout")
        }
        if self.earlier:
            return (
                shapes_of_state(self.earlier),
                {},
                dataclasses.replace(form_of_state(self.earlier), **dropouts),
            )
        if self.plan.init_lora:
            shapes, weights, kind = fit_to_model(
                self.plan.init_lora, parts, self.base_model.export_name
            )
            return shapes, weights, dataclasses.replace(kind, **dropouts)
        return assign_ranks(parts, layer_choice(config)), {}, chosen

    def _texts(self) -> Texts:
        return Texts(variation_of(self.config), trained=self._trains_text_encoder())

    def _trains_text_encoder(self) -> bool:
        shapes, _, _ = self.layers
        return any(not path.startswith("unet.") for path in shapes)

    def _training_data(self, encoded: list[encoded_dataset.Encoded]) -> loop.TrainingData:
        config, plan = self.config, self.plan
        objective = Objective(
            **{field.name: getattr(config, field.name) for field in dataclasses.fields(Objective)}
        )
        validation_indices = tuple(
            number for number, role in enumerate(plan.roles) if role == "validation"
        )
        return loop.TrainingData(
            encoded,
            plan.schedule,
            objective,
            self._texts(),
            validation_indices,
            config.validate_every,
        )

    # --- The steps and the end --------------------------------------------------------------------

    def _take_steps(
        self, patches: ModelPatches, training_data: loop.TrainingData, callbacks: RunCallbacks
    ) -> None:
        config = self.config

        def on_step(done: loop.FinishedStep) -> None:
            callbacks.on_step(done)
            if done.step == 1:
                log.info(
                    "first step done %.2f s after the start, of which encoding took %.2f s",
                    time.monotonic() - self.started,
                    self._encoding_seconds,
                )

        try:
            loop.run(
                patches,
                self.train_state,
                training_data,
                max_grad_norm=config.max_grad_norm,
                may_adapt=config.when_memory_runs_out == "adapt",
                on_step=on_step,
                between=callbacks.between,
                roll_back=callbacks.roll_back,
                remark=self.reporter.remark,
            )
        except NotFinite as error:
            raise Refused(f"{error} {_advice(self.plan, error)}", code="not_finite") from error

    def _offered(self, callbacks: RunCallbacks) -> contextlib.AbstractContextManager[None]:
        return (
            self.host.offer(self.plan.output_file.stem, callbacks.write_live)
            if self.config.live
            else contextlib.nullcontext()
        )

    def _tell_encoding(self, done: int, total: int) -> None:
        self.reporter.tell(
            stage="preparing", message=f"Encoding picture {done} of {total}", fraction=done / total
        )

    def _tell_waiting(self, waiting_for: str, sentence: str) -> None:
        if waiting_for or sentence:
            self.reporter.tell(
                stage="paused" if waiting_for else self.reporter.now.stage,
                waiting_for=waiting_for,
                message=sentence,
            )
        else:
            self.reporter.tell(
                stage="training" if self.train_state else "preparing",
                waiting_for="",
                message="Training" if self.train_state else "Preparing",
            )


def _advice(plan: Plan, error: NotFinite) -> str:
    """Name the pictures of the step that failed, and say what to try."""
    shown = [
        f"{plan.pictures[number].path.name} ({plan.captions[number][:80]!r})"
        for number in error.pictures[:3]
    ]
    more = f" and {len(error.pictures) - 3} more" if len(error.pictures) > 3 else ""
    return (
        f"Its pictures were {', '.join(shown)}{more}. Usually the learning rate is too high: try a"
        " tenth of it. Snapshots and the progress saved before are kept; with fp16, bf16 or fp32"
        " can help too."
    )
