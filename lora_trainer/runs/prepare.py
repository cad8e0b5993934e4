"""From a borrowed model to a run that is ready for its first step: read the model as the settings
say, encode the pictures, attach and set up what is trained.
"""

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from ..base.contracts import BaseModel, ModelOptions
from ..base.errors import ErrorCode, OutOfMemory, Refused
from ..lora.adapter_layers import AdapterSpec, RankAlpha, Weights
from ..lora.adapters import Adapters
from ..lora.load import fit_to_model
from ..lora.target_layers import assign_ranks, count_unet_levels
from ..settings.config import TrainConfig
from ..training import encoded_dataset, precision
from ..training.compute_mode import ComputeMode, describe_out_of_memory, is_out_of_memory
from ..training.conditioning import Conditioner
from ..training.learning_rates import LearningRates, check_rates, rate_warnings
from ..training.model_patches import ModelPatches
from ..training.objective import Objective
from ..training.optimizers import check_with_step, make_optimizer
from ..training.parameter_groups import (
    LOWER_HALF,
    UPPER_HALF,
    Group,
    groups_of,
    own_settings,
    rates_of,
)
from ..training.train_state import TrainState, rank_alphas_in_state, spec_in_state
from ..training.training_data import TrainingData
from .context import RunContext
from .facts import PreparedFacts, RunFacts, model_facts, saved_facts
from .give_way import GiveWay
from .lora_writer import LoraWriter
from .memory import estimate
from .output_files import check_space
from .resume import check_changes, compare_models
from .step_options import (
    adapter_spec,
    caption_augmentation,
    encoding_options,
    layer_settings,
    rate_choice,
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """What the steps of a run need. `chosen_mode` is how they were to be computed, before anything
    went wrong; `facts` go into every training state; `elapsed_seconds` is the time spent before the
    next step, over all parts of the run, of which `encoding_seconds` in this part.
    """

    patches: ModelPatches
    train_state: TrainState
    training_data: TrainingData
    writer: LoraWriter
    chosen_mode: ComputeMode
    facts: PreparedFacts
    encoding_seconds: float
    elapsed_seconds: float


class LayerPlan(NamedTuple):
    """The layers that are trained: rank and alpha by path, the weights they begin with (none: new
    ones), and what is built into each.
    """

    shapes: Mapping[str, RankAlpha]
    weights: Weights
    spec: AdapterSpec

    @property
    def train_text_encoder(self) -> bool:
        """Whether any of the layers is in a text encoder."""
        return any(not path.startswith("unet.") for path in self.shapes)


def prepare_run(base_model: BaseModel, context: RunContext, run_facts: RunFacts) -> PreparedRun:
    """Make everything ready for the steps. `run_facts` describe the run without its model. Raises
    `Refused`, `Stopped`, and `OutOfMemory` while encoding.
    """
    config, plan, earlier = context.config, context.plan, context.earlier
    base_model.configure(_model_options(config))
    _check_model(base_model, config)
    layers = _plan_layers(base_model, context)
    conditioner = Conditioner(
        caption_augmentation(config), trains_text_encoder=layers.train_text_encoder
    )
    _check_settings(base_model, context, layers, conditioner)
    file_bytes = estimate(config, plan.samples, base_model.parts(), init_lora=plan.init_lora)[
        "file_bytes"
    ]
    check_space(plan.output_file, file_bytes or 0)
    facts: PreparedFacts = {
        **run_facts,
        "base_model": model_facts(base_model),
        "session": context.session_id,
    }
    _check_same_model(base_model, context, facts)
    chosen_mode = _chosen_mode(config, base_model)
    compute_mode = chosen_mode
    if earlier:
        compute_mode = chosen_mode.with_overrides(saved_facts(earlier)["forced"], base_model.dtype)
    log.info("computing in %s on %s", compute_mode.dtype, base_model.device)
    elapsed_before = saved_facts(earlier)["elapsed_seconds"] if earlier else 0.0
    began = time.monotonic()
    encoded = _encode(base_model, context, with_captions=not conditioner.encodes_each_step)
    encoding_seconds = time.monotonic() - began
    train_state = _make_train_state(base_model, context, layers, compute_mode.dtype)
    return PreparedRun(
        patches=ModelPatches(base_model, train_state.adapters, compute_mode),
        train_state=train_state,
        training_data=_training_data(context, encoded, conditioner),
        writer=_make_writer(base_model, context, train_state),
        chosen_mode=chosen_mode,
        facts=facts,
        encoding_seconds=encoding_seconds,
        elapsed_seconds=elapsed_before + encoding_seconds,
    )


# --- Model and layers -----------------------------------------------------------------------------


def _model_options(config: TrainConfig) -> ModelOptions:
    zero_terminal_snr = {"auto": None, "on": True, "off": False}
    return ModelOptions(
        clip_skip=config.clip_skip,
        prediction_type="" if config.prediction_type == "auto" else config.prediction_type,
        zero_terminal_snr=zero_terminal_snr[config.zero_terminal_snr],
        max_token_length=config.max_token_length,
        weighted_captions=config.weighted_captions,
    )


def _check_model(base_model: BaseModel, config: TrainConfig) -> None:
    """Raise `Refused` for settings that contradict the model."""
    if base_model.zero_terminal_snr and base_model.prediction_type == "epsilon":
        raise Refused(
            "Zero terminal SNR: a model that predicts noise learns nothing from pure noise. Set"
            " it to off, or The model predicts to v_prediction.",
            field="zero_terminal_snr",
            code=ErrorCode.BAD_VALUE,
        )
    if config.train_text_encoder and not base_model.text_encoders:
        raise Refused(
            "This checkpoint has no text encoder that can learn.",
            field="train_text_encoder",
            code=ErrorCode.BAD_VALUE,
        )


def _plan_layers(base_model: BaseModel, context: RunContext) -> LayerPlan:
    """Choose the layers as a training state, another LoRA or the settings have them."""
    config, parts = context.config, base_model.parts()
    chosen = adapter_spec(config)
    if context.earlier:
        spec = _with_dropouts(spec_in_state(context.earlier), chosen)
        return LayerPlan(rank_alphas_in_state(context.earlier), {}, spec)
    if context.plan.init_lora:
        shapes, weights, spec = fit_to_model(context.plan.init_lora, parts, base_model.export_name)
        return LayerPlan(shapes, weights, _with_dropouts(spec, chosen))
    return LayerPlan(assign_ranks(parts, layer_settings(config)), {}, chosen)


def _with_dropouts(spec: AdapterSpec, chosen: AdapterSpec) -> AdapterSpec:
    """Return a spec with the dropouts of the settings, which are no part of a LoRA."""
    return dataclasses.replace(
        spec,
        dropout=chosen.dropout,
        rank_dropout=chosen.rank_dropout,
        module_dropout=chosen.module_dropout,
    )


def _check_settings(
    base_model: BaseModel, context: RunContext, layers: LayerPlan, conditioner: Conditioner
) -> None:
    """Raise `Refused` for settings that cannot be used with this model and these layers."""
    config = context.config
    if config.train_text_encoder and not layers.train_text_encoder:
        context.reporter.warn(
            "Nothing of the text encoder learns, although it is switched on: the blocks or the"
            " LoRA that is gone on from leave it out."
        )
    if conditioner.encodes_each_step and not base_model.encodes_between_steps:
        raise Refused(
            "The WebUI was started with --medvram, which keeps the text encoder off the GPU"
            " while the UNet is there. Switch off training of the text encoder and everything"
            " that varies captions (shuffling, dropout, trigger word alone), or start it"
            " without.",
            field="train_text_encoder" if config.train_text_encoder else "shuffle_caption",
            code=ErrorCode.MEDVRAM,
        )
    check_with_step(config.optimizer, config.optimizer_args, base_model.device)
    halves = (LOWER_HALF, UPPER_HALF) if layers.spec.kind == "lora" else (LOWER_HALF,)
    choice = rate_choice(config)
    groups = groups_of(
        dict.fromkeys(layers.shapes, dict.fromkeys(halves)),
        choice,
        levels=count_unet_levels(base_model.parts()),
    )
    check_rates(config.optimizer, rates_of(groups, choice))


def _check_same_model(base_model: BaseModel, context: RunContext, facts: PreparedFacts) -> None:
    """Raise `Refused` when a run that goes on was begun with another model."""
    context.reporter.update(message="Preparing", checkpoint=base_model.name)
    going_on = ""
    if context.earlier:
        before = saved_facts(context.earlier)["base_model"]
        for warning in check_changes(
            compare_models(before, facts["base_model"]), anyway=context.anyway
        ):
            context.reporter.warn(warning)
        going_on = f", going on after step {context.earlier.step}"
    log.info(
        "base model %s (%s, %s), %d pictures, %d steps%s",
        base_model.name,
        base_model.family,
        base_model.prediction_type,
        len(context.plan.samples),
        context.plan.schedule.total_steps,
        going_on,
    )


def _chosen_mode(config: TrainConfig, base_model: BaseModel) -> ComputeMode:
    dtype = precision.resolve(
        config.mixed_precision, device=base_model.device, weights=base_model.dtype
    )
    return ComputeMode(dtype, gradient_checkpointing=config.gradient_checkpointing)


# --- Data -----------------------------------------------------------------------------------------


def _encode(
    base_model: BaseModel, context: RunContext, *, with_captions: bool
) -> list[encoded_dataset.EncodedSample]:
    """Encode the pictures; once more if the VAE or the clip skip was changed while others had the
    model.
    """
    config, plan = context.config, context.plan
    give_way = GiveWay(context, stage="preparing")

    def before_picture() -> bool:
        if context.control.should_stop():
            return False
        return not give_way.is_due() or give_way.give_way(step=0)

    def on_progress(done: int, total: int) -> None:
        context.reporter.update(
            stage="preparing", message=f"Encoding picture {done} of {total}", fraction=done / total
        )

    while True:
        key = base_model.encoding_key()
        try:
            encoded = encoded_dataset.encode(
                base_model,
                plan.samples,
                encoding_options(config, with_captions=with_captions),
                between=before_picture,
                on_progress=on_progress,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(0, describe_out_of_memory(error)) from None
        if key == base_model.encoding_key():
            return encoded


def _training_data(
    context: RunContext, encoded: list[encoded_dataset.EncodedSample], conditioner: Conditioner
) -> TrainingData:
    config, plan = context.config, context.plan
    names = [field.name for field in dataclasses.fields(Objective)]
    validation_indices = [
        index for index, sample in enumerate(plan.samples) if sample.role == "validation"
    ]
    return TrainingData(
        encoded=encoded,
        schedule=plan.schedule,
        objective=Objective(**{name: getattr(config, name) for name in names}),
        conditioner=conditioner,
        validation_indices=tuple(validation_indices),
        validate_every=config.validate_every,
    )


# --- What is trained ------------------------------------------------------------------------------


def _make_train_state(
    base_model: BaseModel, context: RunContext, layers: LayerPlan, dtype: torch.dtype
) -> TrainState:
    """Make adapters and optimizer, with the values of the training state that is gone on from."""
    config, earlier = context.config, context.earlier
    parts = base_model.parts()
    adapters = Adapters.create(parts, layers.shapes, layers.spec, seed=config.seed)
    groups = groups_of(
        adapters.named_parameters(),
        rate_choice(config),
        levels=count_unet_levels(base_model.parts()),
    )
    _warn_of_rates(context, groups)
    optimizer = _make_optimizer(config, groups)
    rates = LearningRates(
        config.scheduler,
        optimizer,
        warmup_steps=config.lr_warmup_steps,
        total_steps=context.plan.schedule.total_steps,
        cycles=config.scheduler_cycles,
        power=config.scheduler_power,
    )
    if layers.weights:
        adapters.load(layers.weights)
    train_state = TrainState(
        adapters,
        optimizer,
        rates,
        device=base_model.device,
        dtype=dtype,
        ema_decay=config.ema_decay,
        scale_weight_norms=config.scale_weight_norms,
    )
    if earlier:
        train_state.restore(earlier)
        earlier.free_tensors()  # the train state has copies
    return train_state


def _warn_of_rates(context: RunContext, groups: Iterable[Group]) -> None:
    """Warn of learning rates of what really learns, unless the plan has done so already."""
    config, rates = context.config, rate_choice(context.config).rates()
    warnings = rate_warnings(
        config.optimizer,
        learning_rates={group.part: rates[group.part] for group in groups},
        scheduler=config.scheduler,
    )
    for warning in warnings:
        if warning not in context.plan.warnings:
            context.reporter.warn(warning)


def _make_optimizer(
    config: TrainConfig, groups: Mapping[Group, list[torch.nn.Parameter]]
) -> torch.optim.Optimizer:
    learning_rates = rates_of(groups, rate_choice(config))
    for group, parameters in groups.items():
        if learning_rates[group.name] == 0:  # these stay as they are and need no gradient
            for parameter in parameters:
                parameter.requires_grad_(False)
    return make_optimizer(
        config.optimizer,
        {group.name: parameters for group, parameters in groups.items()},
        learning_rates=learning_rates,
        weight_decay=config.weight_decay,
        arguments=config.optimizer_args,
        own=own_settings(groups),
    )


def _make_writer(base_model: BaseModel, context: RunContext, train_state: TrainState) -> LoraWriter:
    return LoraWriter(
        config=context.config,
        plan=context.plan,
        model=base_model.facts(),
        export_names={
            path: base_model.export_name(path) for path in train_state.adapters.rank_alphas
        },
        train_state=train_state,
        session_id=context.session_id,
    )
