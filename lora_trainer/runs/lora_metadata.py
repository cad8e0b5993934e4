"""What a LoRA file says of itself: kohya's `ss_*` keys in kohya's own formats, Stability's
`modelspec.*`, and all of our settings, so that one can train like it.

Names and formats are those of sd-scripts' train_network.py, where a setting that is off is "None".
No folder is named beyond its own name.
"""

import dataclasses
import datetime
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from ..base.contracts import ModelFacts
from ..base.text import storable
from ..dataset.captions import split_tags
from ..dataset.sample import Sample
from ..interop.kohya_names import OPTIMIZER_CLASSES, OUR_SETTINGS_KEY, WEIGHT_DECAY
from ..lora.adapter_layers import AdapterSpec, RankAlpha
from ..lora.blocks import block_names, read_block_rates, read_blocks
from ..lora.weight_names import LEVELS, SDXL_LEVELS
from ..settings.config import TrainConfig, settings_kept_in_lora
from ..settings.optimizer_arguments import split_arguments
from ..training.batches import batches_per_epoch
from .step_options import rate_choice

Values: TypeAlias = dict[str, object]
"""Metadata by key, before `metadata` writes each value as text."""
Given = TypeVar("Given")
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURES = {
    ("sd1", False): "stable-diffusion-v1",
    ("sd1", True): "stable-diffusion-v1",
    ("sd2", False): "stable-diffusion-v2-512",
    ("sd2", True): "stable-diffusion-v2-768-v",
    ("sdxl", False): "stable-diffusion-xl-v1-base",
    ("sdxl", True): "stable-diffusion-xl-v1-base",
}
_SDXL_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
_LYCORIS_PRESETS = {"all": "full", "attention+feed-forward": "attn-mlp", "attention": "attn-only"}


@dataclasses.dataclass(frozen=True)
class RunFigures:
    """How far a run is. `started_at` is its session id, in seconds since 1970."""

    steps: int
    total_steps: int
    steps_per_epoch: int
    started_at: float
    loss_average: float | None


def metadata(
    config: TrainConfig,
    base_model: ModelFacts,
    shapes: Mapping[str, RankAlpha],
    spec: AdapterSpec,
    samples: Sequence[Sample],
    figures: RunFigures,
) -> dict[str, str]:
    """Describe a LoRA after some steps; `shapes` are rank and alpha by layer."""
    values: Values = {
        **_run(config, samples, figures),
        **_model(config, base_model),
        **_network(config, base_model, shapes, spec),
        **_training(config, shapes),
        **_noise_and_loss(config, base_model),
        **_captions(config),
        **_pictures(config, samples),
        **_specification(config, base_model),
    }
    if figures.loss_average is not None:
        values["ss_loss_average"] = figures.loss_average
    values[OUR_SETTINGS_KEY] = settings_kept_in_lora(config)
    return {key: _text(value) for key, value in values.items()}


def _text(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return storable(text)  # a folder's name need not be valid Unicode, but metadata must be


def _given(value: Given) -> Given | None:
    """Return None for what is off, as sd-scripts has it."""
    return value or None


def _run(config: TrainConfig, samples: Sequence[Sample], figures: RunFigures) -> Values:
    return {
        "ss_output_name": config.output_name,
        "ss_session_id": int(figures.started_at),
        "ss_training_started_at": figures.started_at,
        "ss_training_finished_at": time.time(),
        "ss_steps": figures.steps,
        "ss_epoch": math.ceil(figures.steps / figures.steps_per_epoch),
        "ss_max_train_steps": figures.total_steps,
        "ss_num_epochs": math.ceil(figures.total_steps / figures.steps_per_epoch),
        "ss_num_batches_per_epoch": batches_per_epoch(
            [sample.bucket for sample in samples],
            [sample.repeats for sample in samples],
            batch_size=config.batch_size,
        ),
        "ss_training_comment": None,
    }


def _model(config: TrainConfig, base_model: ModelFacts) -> Values:
    family, predicts_v = base_model.family, base_model.prediction_type == "v_prediction"
    hashed = {"ss_new_sd_model_hash": base_model.sha256} if base_model.sha256 else {}
    return {
        "ss_sd_model_name": base_model.name,
        **hashed,
        "ss_v2": family == "sd2",
        "ss_base_model_version": (
            _VERSIONS[family] + ("_v" if predicts_v and family != "sdxl" else "")
        ),
        "ss_clip_skip": base_model.clip_skip if family != "sdxl" else _given(config.clip_skip),
        "ss_max_token_length": _tokens(config),
        "ss_full_fp16": False,
        "ss_fp8_base": False,
        "ss_fp8_base_unet": False,
        "ss_lowram": False,
        "ss_cache_latents": True,
        "ss_mixed_precision": config.mixed_precision,
    }


def _tokens(config: TrainConfig) -> int | None:
    """Return the most tokens of a caption; 75, the usual, are None in sd-scripts."""
    return config.max_token_length if config.max_token_length > 75 else None


def _network(
    config: TrainConfig,
    base_model: ModelFacts,
    shapes: Mapping[str, RankAlpha],
    spec: AdapterSpec,
) -> Values:
    """Describe the adapters.

    Rank and alpha are as set, or those of most layers where none has those: a LoRA that is trained
    further brings its own.
    """
    usual = Counter((shape.rank, shape.alpha) for shape in shapes.values())
    rank, alpha = config.lora_rank, config.alpha
    if (rank, alpha) not in usual:
        rank, alpha = usual.most_common(1)[0][0]
    plain = spec.kind == "lora" and not spec.use_dora
    values: Values = {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": rank,
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_dropout": _given(spec.dropout),
        "ss_scale_weight_norms": _given(config.scale_weight_norms),
    }
    if arguments := _network_arguments(config, base_model, spec, rank=rank, alpha=alpha):
        values["ss_network_args"] = arguments
    return values


def _network_arguments(
    config: TrainConfig, base_model: ModelFacts, spec: AdapterSpec, *, rank: int, alpha: float
) -> Values:
    """Return what stands behind --network_args in sd-scripts, where something does."""
    levels = SDXL_LEVELS if base_model.family == "sdxl" else LEVELS
    found: Values = {}
    if spec.kind != "lora" or spec.use_dora:
        found["algo"] = "locon" if spec.kind == "lora" else spec.kind
        found["preset"] = _LYCORIS_PRESETS[config.lora_targets]
    elif config.lora_targets == "attention":
        found["targets"] = "attention"
    if config.lora_targets == "all":
        found["conv_dim"] = config.conv_rank or rank
        found["conv_alpha"] = config.conv_alpha or alpha * (config.conv_rank or rank) / rank
    if config.lora_blocks:
        found |= _block_arguments(config, levels, rank=rank, alpha=alpha)
    found |= _rate_arguments(config, levels, spec)
    found |= _kind_arguments(spec)
    if not found:
        return {}
    written = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in found.items()
    }
    # sd-scripts repeats the dropout here, as a number.
    return {**written, "dropout": _given(spec.dropout)}


def _kind_arguments(spec: AdapterSpec) -> Values:
    found: Values = {}
    if spec.kind == "lokr":
        found["factor"] = spec.lokr_factor
    if spec.rslora:
        found["rs_lora"] = True
    if spec.use_dora:
        found |= {"dora_wd": True, "wd_on_output": False}
    if spec.rank_dropout:
        found["rank_dropout"] = spec.rank_dropout
    if spec.module_dropout:
        found["module_dropout"] = spec.module_dropout
    return found


def _block_arguments(
    config: TrainConfig, levels: int, *, rank: int, alpha: float
) -> dict[str, str]:
    chosen = read_blocks(config.lora_blocks, levels)
    names = block_names(levels)
    if levels == SDXL_LEVELS:
        # sd-scripts has its embeddings and last layer, which are not trained, and three blocks in
        # the middle.
        middle = [name for name in names for _ in range(3 if name == "MID" else 1)]
        names = ["", *middle, ""]
    pairs = [
        chosen[name].with_defaults(rank, alpha) if name in chosen else (0, alpha) for name in names
    ]
    return {
        "block_dims": ",".join(str(own) for own, _ in pairs),
        "block_alphas": ",".join(f"{own:g}" for _, own in pairs),
    }


def _rate_arguments(config: TrainConfig, levels: int, spec: AdapterSpec) -> Values:
    """Return LoRA+'s ratios and the factors of blocks, as sd-scripts lists them.

    SDXL has three blocks in the middle there.
    """
    choice = rate_choice(config)
    found: Values = {}
    if spec.kind == "lora" and set(choice.ratios().values()) != {1.0}:
        found |= {f"loraplus_{part}_lr_ratio": ratio for part, ratio in choice.ratios().items()}
    rates = read_block_rates(config.block_learning_rates, levels)
    if not rates:
        return found
    for key, start in (("down", "IN"), ("mid", "MID"), ("up", "OUT")):
        names = [name for name in block_names(levels) if name.startswith(start)]
        factors = [f"{rates.get(name, 1.0):.10g}" for name in names]
        if levels == SDXL_LEVELS and key == "mid":
            factors *= 3
        found[f"{key}_lr_weight"] = ",".join(factors)
    return found


def _training(config: TrainConfig, shapes: Mapping[str, RankAlpha]) -> Values:
    # The layers tell which parts are trained; with a LoRA trained further, the switches do not.
    trains_unet = any(path.startswith("unet.") for path in shapes)
    trains_text_encoder = any(not path.startswith("unet.") for path in shapes)
    scheduler = config.scheduler
    if scheduler == "constant" and config.lr_warmup_steps:
        scheduler = "constant_with_warmup"
    return {
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate if trains_unet else None,
        "ss_text_encoder_lr": config.text_encoder_lr if trains_text_encoder else None,
        "ss_lr_scheduler": scheduler,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_optimizer": _optimizer(config),
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": config.batch_size * config.gradient_accumulation_steps,
        "ss_seed": config.seed,
        "ss_validation_seed": None,
        "ss_validation_split": config.validation_split,
        "ss_max_validation_steps": None,
        "ss_validate_every_n_epochs": None,
        "ss_validate_every_n_steps": _given(config.validate_every),
    }


def _optimizer(config: TrainConfig) -> str:
    """Return the optimizer's class and arguments, as sd-scripts writes them."""
    arguments = []
    if config.weight_decay != WEIGHT_DECAY.get(config.optimizer, 0.0):
        arguments.append(f"weight_decay={config.weight_decay}")
    for name, value in split_arguments(config.optimizer_args):
        arguments.append(f"{name}={_python(value)}")
    called = OPTIMIZER_CLASSES[config.optimizer]
    return f"{called}({','.join(arguments)})" if arguments else called


def _python(value: str) -> str:
    """Write several numbers as a tuple."""
    if "," in value and not value.startswith(("(", "[")):
        return f"({', '.join(part.strip() for part in value.split(','))})"
    return value


def _noise_and_loss(config: TrainConfig, base_model: ModelFacts) -> Values:
    return {
        "ss_noise_offset": _given(config.noise_offset),
        "ss_noise_offset_random_strength": config.noise_offset_random,
        "ss_adaptive_noise_scale": None,
        "ss_multires_noise_iterations": _given(config.multires_noise_iterations),
        "ss_multires_noise_discount": config.multires_noise_discount,
        "ss_ip_noise_gamma": _given(config.input_perturbation),
        "ss_ip_noise_gamma_random_strength": config.input_perturbation_random,
        "ss_zero_terminal_snr": base_model.zero_terminal_snr,
        "ss_min_snr_gamma": _given(config.min_snr_gamma),
        "ss_debiased_estimation": config.debiased_estimation,
        "ss_prior_loss_weight": config.prior_loss_weight,
        "ss_loss_type": config.loss_type,
        "ss_huber_schedule": config.huber_schedule,
        "ss_huber_scale": 1.0,
        "ss_huber_c": config.huber_c,
    }


def _captions(config: TrainConfig) -> Values:
    return {
        "ss_shuffle_caption": config.shuffle_caption,
        "ss_keep_tokens": config.keep_tokens,
        "ss_caption_dropout_rate": config.caption_dropout_rate,
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": config.caption_tag_dropout_rate,
    }


def _pictures(config: TrainConfig, samples: Sequence[Sample]) -> Values:
    """Describe pictures, tags and buckets; numbers of pictures count repeats, as sd-scripts' do."""
    train = [sample for sample in samples if sample.role == "train"]
    regularisation = [sample for sample in samples if sample.role == "regularisation"]
    buckets: object = "null"
    if config.enable_bucket:
        buckets = _buckets(train + regularisation)
    return {
        "ss_num_train_images": sum(sample.repeats for sample in train),
        "ss_num_validation_images": sum(sample.role == "validation" for sample in samples),
        "ss_num_reg_images": sum(sample.repeats for sample in regularisation),
        "ss_resolution": (config.resolution, config.resolution),
        "ss_enable_bucket": config.enable_bucket,
        "ss_bucket_no_upscale": config.bucket_no_upscale,
        "ss_min_bucket_reso": _given(config.bucket_min) if config.enable_bucket else None,
        "ss_max_bucket_reso": _given(config.bucket_max) if config.enable_bucket else None,
        "ss_flip_aug": config.mirror,
        "ss_random_crop": config.random_crop,
        "ss_color_aug": config.color_jitter > 0,
        "ss_face_crop_aug_range": None,
        "ss_resize_interpolation": None,
        "ss_bucket_info": buckets,
        "ss_dataset_dirs": _folders(_once(config, train)),
        "ss_reg_dataset_dirs": _folders(_once(config, regularisation)),
        "ss_tag_frequency": _tag_frequency(_once(config, train + regularisation)),
    }


def _once(config: TrainConfig, samples: Sequence[Sample]) -> list[Sample]:
    """Keep one sample of each picture: the one in the main resolution."""
    return [sample for sample in samples if sample.resolution_px == config.resolution]


def _tag_frequency(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Count the tags of each folder, the most frequent first."""
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        tags[sample.picture.path.parent.name].update(split_tags(sample.caption))
    return {folder: dict(found.most_common()) for folder, found in tags.items()}


def _buckets(samples: Sequence[Sample]) -> Values:
    counts: Counter[tuple[int, int]] = Counter()
    errors = []
    for sample in samples:
        picture, bucket = sample.picture, sample.bucket
        counts[bucket.width, bucket.height] += sample.repeats
        errors.append(abs(bucket.width / bucket.height - picture.width / picture.height))
    return {
        "buckets": {
            str(at): {"resolution": list(size), "count": count}
            for at, (size, count) in enumerate(sorted(counts.items()))
        },
        "mean_img_ar_error": sum(errors) / max(1, len(errors)),
    }


def _folders(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Describe each folder by its name alone, a second of the same name as "name (2)"."""
    by_folder: dict[Path, list[int]] = defaultdict(list)
    for sample in samples:
        by_folder[sample.picture.path.parent].append(sample.repeats)
    found: dict[str, dict[str, int]] = {}
    for folder, repeats in by_folder.items():
        name, number = folder.name or "pictures", 2
        while name in found:
            name, number = f"{folder.name} ({number})", number + 1
        found[name] = {"n_repeats": max(repeats), "img_count": len(repeats)}
    return found


def _specification(config: TrainConfig, base_model: ModelFacts) -> Values:
    """Fill in Stability's model spec 1.0.1, as sd-scripts does."""
    predicts_v = base_model.prediction_type == "v_prediction"
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": _ARCHITECTURES[base_model.family, predicts_v] + "/lora",
        "implementation": _SDXL_IMPLEMENTATION if base_model.family == "sdxl" else "diffusers",
        "title": config.output_name,
        "resolution": f"{config.resolution}x{config.resolution}",
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "prediction_type": "v" if predicts_v else "epsilon",
        "trigger_phrase": _given(config.trigger_word),
        "timestep_range": (
            f"{config.min_timestep},{config.max_timestep}"
            if (config.min_timestep, config.max_timestep) != (0, 1000)
            else None
        ),
        "encoder_layer": (
            base_model.clip_skip if base_model.family != "sdxl" else _given(config.clip_skip)
        ),
    }
    return {f"modelspec.{name}": value for name, value in values.items() if value is not None}
