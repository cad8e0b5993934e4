"""What a LoRA says of itself: kohya's `ss_*` keys in kohya's own formats, Stability's
`modelspec.*`, and all of our settings, so that one can train like it.

Names and formats are those of sd-scripts' train_network.py; what is not set is "None" there, too.
Nothing here names a folder beyond its own name.
"""

import datetime
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.contracts import BaseModel
from ..dataset.captions import split_tags
from ..interop.kohya_names import OPTIMIZER_CLASSES, OUR_SETTINGS, WEIGHT_DECAY
from ..lora.blocks import block_names, read_block_rates, read_blocks
from ..lora.weight_names import LEVELS, SDXL_LEVELS
from ..settings.config import TrainConfig, held_settings
from .step_options import rate_choice

if TYPE_CHECKING:
    from ..lora.adapter_layers import AdapterSpec, RankAlpha
    from .plan import Plan

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


def metadata(
    config: TrainConfig,
    base_model: BaseModel,
    shapes: "Mapping[str, RankAlpha]",
    form: "AdapterSpec",
    plan: "Plan",
    *,
    steps: int,
    started_at: float,
    loss_average: float | None,
) -> dict[str, str]:
    """Describe a LoRA after `steps` steps; all values are strings. `started_at` is the run's name
    for itself, in seconds since 1970.
    """
    values = {
        **_run(config, plan, steps=steps, started_at=started_at),
        **_model(config, base_model),
        **_network(config, base_model, shapes, form),
        **_training(config, shapes),
        **_noise_and_loss(config, base_model),
        **_captions(config),
        **_pictures(config, plan),
        **_specification(config, base_model),
    }
    values |= {"ss_loss_average": loss_average} if loss_average is not None else {}
    return {
        key: _text(value) for key, value in {**values, OUR_SETTINGS: held_settings(config)}.items()
    }


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text.encode(
        "utf-8", "backslashreplace"
    ).decode()  # a folder's name need not be Unicode; metadata must


def _given(value: Any) -> Any:
    """What is off is None in sd-scripts."""
    return value or None


def _run(config: TrainConfig, plan: "Plan", *, steps: int, started_at: float) -> dict[str, Any]:
    schedule = plan.schedule
    return {
        "ss_output_name": config.output_name,
        "ss_session_id": int(started_at),
        "ss_training_started_at": started_at,
        "ss_training_finished_at": time.time(),
        "ss_steps": steps,
        "ss_epoch": math.ceil(steps / schedule.steps_per_epoch),
        "ss_max_train_steps": schedule.total_steps,
        "ss_num_epochs": math.ceil(schedule.total_steps / schedule.steps_per_epoch),
        "ss_num_batches_per_epoch": _batches(config, plan),
        "ss_training_comment": None,
    }


def _batches(config: TrainConfig, plan: "Plan") -> int:
    counted = Counter()
    for bucket, repeats in zip(plan.buckets, plan.schedule.repeats, strict=True):
        counted[bucket] += repeats
    return sum(math.ceil(count / config.batch_size) for count in counted.values())


def _model(config: TrainConfig, base_model: BaseModel) -> dict[str, Any]:
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
    return (
        config.max_token_length if config.max_token_length > 75 else None
    )  # one portion is what sd-scripts calls None


def _network(
    config: TrainConfig,
    base_model: BaseModel,
    shapes: "Mapping[str, RankAlpha]",
    form: "AdapterSpec",
) -> dict[str, Any]:
    """Rank and alpha as set, or of most layers where none has those: a LoRA that was gone on from
    brings its own.
    """
    usual = Counter((shape.rank, shape.alpha) for shape in shapes.values())
    rank, alpha = (
        (config.lora_rank, config.alpha)
        if (config.lora_rank, config.alpha) in usual
        else usual.most_common(1)[0][0]
    )
    arguments = _network_arguments(config, base_model, form, rank=rank, alpha=alpha)
    return {
        "ss_network_module": (
            "networks.lora" if form.kind == "lora" and not form.use_dora else "lycoris.kohya"
        ),
        "ss_network_dim": rank,
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_dropout": _given(form.dropout),
        "ss_scale_weight_norms": _given(config.scale_weight_norms),
        **({"ss_network_args": arguments} if arguments else {}),
    }


def _network_arguments(
    config: TrainConfig, base_model: BaseModel, form: "AdapterSpec", *, rank: int, alpha: float
) -> dict[str, Any]:
    """What stands behind --network_args in sd-scripts, where something does."""
    found: dict[str, Any] = {}
    if form.kind != "lora" or form.use_dora:
        found |= {
            "algo": "locon" if form.kind == "lora" else form.kind,
            "preset": _LYCORIS_PRESETS[config.lora_targets],
        }
    elif config.lora_targets == "attention":
        found["targets"] = "attention"
    if config.lora_targets == "all":
        found |= {
            "conv_dim": config.conv_rank or rank,
            "conv_alpha": config.conv_alpha or alpha * (config.conv_rank or rank) / rank,
        }
    if config.lora_blocks:
        found |= _block_arguments(
            config, SDXL_LEVELS if base_model.family == "sdxl" else LEVELS, rank=rank, alpha=alpha
        )
    found |= _rate_arguments(config, SDXL_LEVELS if base_model.family == "sdxl" else LEVELS, form)
    found |= {"factor": form.lokr_factor} if form.kind == "lokr" else {}
    found |= {"rs_lora": True} if form.rslora else {}
    found |= {"dora_wd": True, "wd_on_output": False} if form.use_dora else {}
    found |= {
        name: value
        for name, value in (
            ("rank_dropout", form.rank_dropout),
            ("module_dropout", form.module_dropout),
        )
        if value
    }
    texts = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in found.items()
    }
    return (
        {**texts, "dropout": _given(form.dropout)} if found else {}
    )  # sd-scripts puts it there, too, and as a number


def _block_arguments(
    config: TrainConfig, levels: int, *, rank: int, alpha: float
) -> dict[str, str]:
    chosen = read_blocks(config.lora_blocks, levels)
    names = block_names(levels)
    if (
        levels == SDXL_LEVELS
    ):  # its embeddings and last layer, which do not learn, and three blocks in the middle
        names = ["", *(name for each in names for name in [each] * (3 if each == "MID" else 1)), ""]
    pairs = [chosen[name].override(rank, alpha) if name in chosen else (0, alpha) for name in names]
    return {
        "block_dims": ",".join(str(own) for own, _ in pairs),
        "block_alphas": ",".join(f"{own:g}" for _, own in pairs),
    }


def _rate_arguments(config: TrainConfig, levels: int, form: "AdapterSpec") -> dict[str, str]:
    """LoRA+'s ratios, and factors of blocks as sd-scripts lists them; SDXL has three blocks in the
    middle there.
    """
    choice, found = rate_choice(config), {}
    if form.kind == "lora" and set(choice.ratios().values()) != {1.0}:
        found |= {f"loraplus_{part}_lr_ratio": ratio for part, ratio in choice.ratios().items()}
    rates = read_block_rates(config.block_learning_rates, levels)
    for key, start in (("down", "IN"), ("mid", "MID"), ("up", "OUT")) if rates else ():
        factors = [rates.get(name, 1.0) for name in block_names(levels) if name.startswith(start)]
        found[f"{key}_lr_weight"] = ",".join(
            f"{factor:.10g}"
            for factor in factors * (3 if levels == SDXL_LEVELS and key == "mid" else 1)
        )
    return found


def _training(config: TrainConfig, shapes: "Mapping[str, RankAlpha]") -> dict[str, Any]:
    unet, text = (
        any(path.startswith("unet.") == inside for path in shapes) for inside in (True, False)
    )  # a LoRA gone on from decides it, not the switches
    scheduler = (
        "constant_with_warmup"
        if config.scheduler == "constant" and config.lr_warmup_steps
        else config.scheduler
    )
    decay = (
        [f"weight_decay={config.weight_decay}"]
        if config.weight_decay != WEIGHT_DECAY.get(config.optimizer, 0.0)
        else []
    )
    arguments = ",".join(
        [
            *decay,
            *(
                f"{name}={_python(value)}"
                for name, _, value in (
                    item.partition("=") for item in config.optimizer_args.split()
                )
            ),
        ]
    )
    return {
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate if unet else None,
        "ss_text_encoder_lr": config.text_encoder_lr if text else None,
        "ss_lr_scheduler": scheduler,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_optimizer": (
            OPTIMIZER_CLASSES[config.optimizer] + (f"({arguments})" if arguments else "")
        ),
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


def _python(value: str) -> str:
    return (
        f"({', '.join(value.split(','))})"
        if "," in value and not value.startswith(("(", "["))
        else value
    )


def _noise_and_loss(config: TrainConfig, base_model: BaseModel) -> dict[str, Any]:
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


def _captions(config: TrainConfig) -> dict[str, Any]:
    return {
        "ss_shuffle_caption": config.shuffle_caption,
        "ss_keep_tokens": config.keep_tokens,
        "ss_caption_dropout_rate": config.caption_dropout_rate,
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": config.caption_tag_dropout_rate,
    }


def _pictures(config: TrainConfig, plan: "Plan") -> dict[str, Any]:
    """Pictures, tags and buckets; numbers of pictures count repeats, as sd-scripts' do."""
    counted = {
        role: [at for at, found in enumerate(plan.roles) if found == role]
        for role in ("train", "regularisation", "validation")
    }
    tags: dict[str, Counter] = defaultdict(Counter)
    once = [
        at
        for at in counted["train"] + counted["regularisation"]
        if plan.resolutions[at] == config.resolution
    ]
    for at in once:
        tags[plan.pictures[at].path.parent.name].update(split_tags(plan.captions[at]))
    return {
        "ss_num_train_images": sum(plan.pictures[at].repeats for at in counted["train"]),
        "ss_num_validation_images": len(counted["validation"]),
        "ss_num_reg_images": sum(plan.pictures[at].repeats for at in counted["regularisation"]),
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
        "ss_bucket_info": (
            _buckets(plan, counted["train"] + counted["regularisation"])
            if config.enable_bucket
            else "null"
        ),
        "ss_dataset_dirs": _folders(plan, [at for at in once if plan.roles[at] == "train"]),
        "ss_reg_dataset_dirs": _folders(
            plan, [at for at in once if plan.roles[at] == "regularisation"]
        ),
        "ss_tag_frequency": {folder: dict(found.most_common()) for folder, found in tags.items()},
    }


def _buckets(plan: "Plan", chosen: list[int]) -> dict[str, Any]:
    counted: Counter = Counter()
    for at in chosen:
        counted[plan.buckets[at].width, plan.buckets[at].height] += plan.pictures[at].repeats
    errors = [
        abs(
            plan.buckets[at].width / plan.buckets[at].height
            - plan.pictures[at].width / plan.pictures[at].height
        )
        for at in chosen
    ]
    return {
        "buckets": {
            str(at): {"resolution": list(size), "count": count}
            for at, (size, count) in enumerate(sorted(counted.items()))
        },
        "mean_img_ar_error": sum(errors) / max(1, len(errors)),
    }


def _folders(plan: "Plan", chosen: list[int]) -> dict[str, dict[str, int]]:
    """Each folder by its name alone, a second of the same name as "name (2)"."""
    by_folder: dict[Path, list[int]] = defaultdict(list)
    for at in chosen:
        by_folder[plan.pictures[at].path.parent].append(plan.pictures[at].repeats)
    found: dict[str, dict[str, int]] = {}
    for folder, repeats in by_folder.items():
        name, number = folder.name or "pictures", 2
        while name in found:
            name, number = f"{folder.name} ({number})", number + 1
        found[name] = {"n_repeats": max(repeats), "img_count": len(repeats)}
    return found


def _specification(config: TrainConfig, base_model: BaseModel) -> dict[str, Any]:
    """Stability's model spec 1.0.1, as sd-scripts fills it in."""
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
