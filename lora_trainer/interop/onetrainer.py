"""OneTrainer's settings in sd-scripts' names, for `kohya.translate` to take over. What a file
leaves out is as OneTrainer has it then.
"""

import dataclasses
import math
from collections.abc import Mapping

from ..base.errors import ErrorCode, Refused
from ..base.text import number
from ..settings.setting import WrittenSettings
from .conversion import Conversion, is_unset, parse_text

DEFAULTS: dict[str, object] = {
    "learning_rate": 3e-6,
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "epochs": 100,
    "batch_size": 1,
    "resolution": "512",
    "learning_rate_warmup_steps": 200,
    "learning_rate_scheduler": "CONSTANT",
    "clip_grad_norm": 1.0,
    "aspect_ratio_bucketing": True,
    "layer_filter_preset": "full",
    "output_dtype": "FLOAT_32",
    "peft_type": "LORA",
}
_PLAIN = {  # OneTrainer's name: sd-scripts', where the value means the same
    "epochs": "max_train_epochs",
    "batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "aspect_ratio_bucketing": "enable_bucket",
    "dropout_probability": "network_dropout",
    "clip_grad_norm": "max_grad_norm",
    "offset_noise_weight": "noise_offset",
    "perturbation_noise_weight": "ip_noise_gamma",
    "rescale_noise_scheduler_to_zero_terminal_snr": "zero_terminal_snr",
    "force_v_prediction": "v_parameterization",
    "lora_model_name": "network_weights",
}
_FAMILIES = (
    "STABLE_DIFFUSION_15",
    "STABLE_DIFFUSION_20",
    "STABLE_DIFFUSION_21",
    "STABLE_DIFFUSION_XL",
)
_OPTIMIZERS = {
    "ADAMW": "AdamW",
    "ADAM": "AdamW",
    "ADAMW_8BIT": "AdamW8bit",
    "ADAM_8BIT": "AdamW8bit",
    "ADAMW_ADV": "AdamW",
    "LION": "Lion",
    "LION_8BIT": "Lion8bit",
    "ADAFACTOR": "Adafactor",
    "PRODIGY": "Prodigy",
    "PRODIGY_ADV": "Prodigy",
    "PRODIGY_PLUS_SCHEDULE_FREE": "ProdigyPlusScheduleFree",
    "DADAPT_ADAM": "DAdaptAdam",
    "SCHEDULE_FREE_ADAMW": "AdamWScheduleFree",
}
_OPTIMIZER_ARGUMENTS = (
    "eps",
    "d0",
    "d_coef",
    "use_bias_correction",
    "safeguard_warmup",
    "scale_parameter",
    "decay_rate",
    "clip_threshold",
)
_SCHEDULES = {
    "CONSTANT": "constant_with_warmup",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_RESTARTS": "cosine_with_restarts",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
}
_NUMBERS = {"FLOAT_32": "no", "TFLOAT_32": "no", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
_SAVED = {"FLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
_CANNOT = {
    "generalized_offset_noise": "the offset is the same at every timestep here",
    "learning_rate_scaler": "the learning rate is taken as it is: multiply it yourself",
    "learning_rate_min_factor": "schedules end at 0 here",
    "masked_prior_preservation_weight": (
        "there is no prior preservation; regularisation pictures are near to it"
    ),
    "normalize_masked_area_loss": "masks are always normalised",
    "unmasked_probability": "masks are used for every picture",
    "custom_conditioning_image": "it belongs to inpainting with pictures of its own",
    "additional_embeddings": "embeddings are not trained here",
    "sample_definition_file_name": "draw pictures whenever you like while it trains",
    "samples": "draw pictures whenever you like while it trains",
    "force_epsilon_prediction": (
        "the checkpoint says it; otherwise set The model predicts to epsilon"
    ),
    "custom_learning_rate_scheduler": "only the schedules of the list",
    "continue_last_backup": "another program's progress cannot be gone on with",
    "multi_gpu": "one process trains on one device",
    "force_circular_padding": "pictures that tile are not trained here",
    "timestep_shift": "it belongs to models that are not trained here",
    "vb_loss_strength": "it has no counterpart",
    "log_cosh_strength": "Loss: huber is near to it",
}
"""What has an effect there and none here; everything else that is not named in this file has none
there either, or suits a machine.
"""


def to_kohya(nested: WrittenSettings) -> Conversion:
    """Bring a OneTrainer config into sd-scripts' names, for what has none there into ours. Its
    folders of pictures are read by onetrainer_concepts.py.

    Raises `Refused` (code "no_settings") for a model of another kind.
    """
    kind = str(nested.get("model_type", ""))
    if not kind.startswith(_FAMILIES):
        raise Refused(
            f"This OneTrainer file is for {kind[:60]}. Stable Diffusion 1, 2 and XL are trained"
            " here.",
            code=ErrorCode.NO_SETTINGS,
        )
    given = {
        str(key): cleaned
        for key, value in nested.items()
        if (cleaned := parse_text(value)) is not None
    }
    values = {**DEFAULTS, **given}
    conversion = Conversion({})
    said = conversion.values
    said.update({theirs: values[name] for name, theirs in _PLAIN.items() if name in values})
    said["sdxl"] = "_XL" in kind
    said["v2"] = kind.startswith(("STABLE_DIFFUSION_20", "STABLE_DIFFUSION_21"))
    said["max_token_length"] = 75
    for part in (
        _method,
        _place,
        _network,
        _parts,
        _optimizer,
        _schedule,
        _resolution,
        _loss,
        _timesteps,
        _masks,
        _precision,
    ):
        part(conversion, values)
    said["clip_skip"] = (
        None
        if said["sdxl"] or said["v2"]
        else int(number(values.get("text_encoder_layer_skip")) or 0) + 1
    )
    for key, reason in _CANNOT.items():
        if str(value := values.get(key)).upper() not in ("NONE", "NEVER"):
            conversion.skip(key, value, reason)
    conversion.values = {key: value for key, value in said.items() if value is not None}
    return conversion


def assumed(nested: WrittenSettings) -> set[str]:
    """Name, as this program does, the settings that OneTrainer had as it has them by itself."""
    ours = {
        "learning_rate": {"learning_rate"},
        "lora_rank": {"lora_rank"},
        "lora_alpha": {"lora_alpha"},
        "epochs": {"epochs"},
        "batch_size": {"batch_size"},
        "resolution": {"resolution"},
        "learning_rate_scheduler": {"scheduler"},
        "learning_rate_warmup_steps": {"lr_warmup_steps"},
        "clip_grad_norm": {"max_grad_norm"},
        "aspect_ratio_bucketing": {"enable_bucket"},
        "layer_filter_preset": {"lora_targets"},
        "output_dtype": {"save_precision"},
        "peft_type": {"lora_type"},
        "optimizer": {"optimizer", "weight_decay"},
        "text_encoder_layer_skip": {"clip_skip"},
    }
    return {name for key, names in ours.items() if key not in nested for name in names} | {
        "max_token_length"
    }


def use_its_names(conversion: Conversion) -> None:
    """Call what was taken over and what was left out as OneTrainer does, and drop what this module
    added.
    """
    theirs = {
        **{kohya: name for name, kohya in _PLAIN.items()},
        "pretrained_model_name_or_path": "base_model_name",
        "network_dim": "lora_rank",
        "network_alpha": "lora_alpha",
        "lr_scheduler": "learning_rate_scheduler",
        "lr_warmup_steps": "learning_rate_warmup_steps",
        "optimizer_type": "optimizer",
        "network_module": "peft_type",
        "network_args dora_wd": "lora_decompose",
    }
    conversion.origin = {name: theirs.get(key, key) for name, key in conversion.origin.items()}
    conversion.left_out = [
        dataclasses.replace(left, key=theirs.get(left.key, left.key))
        for left in conversion.left_out
        if left.key not in ("sdxl", "v2")
    ]


def _method(conversion: Conversion, values: WrittenSettings) -> None:
    if (method := str(values.get("training_method", "LORA"))) != "LORA":
        conversion.skip("training_method", method, "LoRAs are trained here")


def _place(conversion: Conversion, values: WrittenSettings) -> None:
    conversion.values["pretrained_model_name_or_path"] = values.get("base_model_name")
    folder, _, name = (
        str(values.get("output_model_destination") or "").replace("\\", "/").rpartition("/")
    )
    stem, _, ending = name.rpartition(".")
    if stem and ending.lower() in ("safetensors", "ckpt"):
        conversion.set("output_name", stem, "output_model_destination")
        if folder:
            conversion.set("output_dir", folder, "output_model_destination")


def _network(conversion: Conversion, values: WrittenSettings) -> None:
    kind = str(values["peft_type"]).upper()
    said = conversion.values
    arguments = {}
    said["network_module"] = {
        "LORA": "networks.lora",
        "LOHA": "networks.loha",
        "LOKR": "networks.lokr",
    }.get(kind, kind)
    said["network_dim"] = (
        values.get("lokr_dim", values["lora_rank"]) if kind == "LOKR" else values["lora_rank"]
    )
    said["network_alpha"] = values["lora_alpha"]
    if kind == "LOKR":
        arguments["factor"] = values.get("lokr_decompose_factor")
    if values.get("lokr_weight_decompose" if kind == "LOKR" else "lora_decompose") is True:
        arguments["dora_wd"] = True
    if (preset := str(values["layer_filter_preset"])) == "full":
        arguments |= {"conv_dim": said["network_dim"], "conv_alpha": said["network_alpha"]}
    elif preset == "attn-only":
        arguments["targets"] = "attention"
    elif preset != "attn-mlp":
        conversion.skip(
            "layer_filter",
            values.get("layer_filter") or preset,
            "layers are chosen by kind, Layers, and by block, Blocks",
        )
    said["network_args"] = {key: value for key, value in arguments.items() if value is not None}


def _part(values: WrittenSettings, name: str) -> WrittenSettings:
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}


def _parts(conversion: Conversion, values: WrittenSettings) -> None:
    """Which parts learn, and how fast: a part without a learning rate of its own has the common
    one.
    """
    said = conversion.values
    common = values["learning_rate"]
    names = ("text_encoder", "text_encoder_2") if said["sdxl"] else ("text_encoder",)
    encoders = [_part(values, name) for name in names]
    trained = [part for part in encoders if part.get("train", True) is not False]
    said["unet_lr"] = (
        rate if (rate := _part(values, "unet").get("learning_rate")) is not None else common
    )
    said["network_train_text_encoder_only"] = _part(values, "unet").get("train", True) is False
    said["network_train_unet_only"] = not trained
    if trained:
        rates = [
            common if part.get("learning_rate") is None else part["learning_rate"]
            for part in trained
        ]
        said["text_encoder_lr"] = rates
        if len(trained) < len(encoders):
            conversion.skip(
                "text_encoder_2" if trained[0] is encoders[0] else "text_encoder",
                "not trained",
                "both text encoders learn here, or none",
            )
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if str(
            (part := _part(values, name)).get("stop_training_after_unit", "NEVER")
        ) != "NEVER" and part.get("stop_training_after"):
            conversion.skip(
                f"{name} stop_training_after",
                part["stop_training_after"],
                "what learns does so to the end",
            )
    if dropout := number(_part(values, "text_encoder").get("dropout_probability")):
        said["caption_dropout_rate"] = dropout


def _optimizer(conversion: Conversion, values: WrittenSettings) -> None:
    said = values.get("optimizer", "ADAMW")
    details = said if isinstance(said, Mapping) else {"optimizer": said}
    name = str(details.get("optimizer", "ADAMW")).upper()
    conversion.values["optimizer_type"] = _OPTIMIZERS.get(name, name)
    if name in ("ADAM", "ADAM_8BIT", "ADAMW_ADV", "PRODIGY_ADV"):
        conversion.skip("optimizer", name, f"{_OPTIMIZERS[name]} is taken instead")
    arguments = {
        key: details[key] for key in _OPTIMIZER_ARGUMENTS if not is_unset(details.get(key))
    }
    if (decay := number(details.get("weight_decay"))) is not None:
        arguments["weight_decay"] = decay
    betas = [number(details.get(key)) for key in ("beta1", "beta2")]
    if None not in betas and name != "ADAFACTOR":
        arguments["betas"] = ",".join(f"{beta:g}" for beta in betas if beta is not None)
    if name == "ADAFACTOR":
        arguments["relative_step"] = details.get("relative_step", False) is True
    allowed = (
        ("decay_rate", "clip_threshold", "scale_parameter", "relative_step", "weight_decay")
        if name == "ADAFACTOR"
        else tuple(
            key
            for key in arguments
            if key not in ("decay_rate", "clip_threshold", "scale_parameter")
        )
    )
    conversion.values["optimizer_args"] = {
        key: value for key, value in arguments.items() if key in allowed
    }


def _schedule(conversion: Conversion, values: WrittenSettings) -> None:
    name, said = str(values["learning_rate_scheduler"]).upper(), conversion.values
    said["lr_scheduler"] = _SCHEDULES.get(name, name.lower())
    if "RESTARTS" in name and (cycles := number(values.get("learning_rate_cycles"))):
        said["lr_scheduler_num_cycles"] = max(1, round(cycles))
    warm_up = number(values["learning_rate_warmup_steps"])
    accumulated = number(values.get("gradient_accumulation_steps")) or 1
    said["lr_warmup_steps"] = (
        warm_up if warm_up is None or warm_up <= 1 else int(warm_up / max(1, accumulated))
    )
    if str(values.get("ema", "OFF")).upper() != "OFF":
        conversion.set(
            "ema_decay", min(0.99999, number(values.get("ema_decay", 0.999)) or 0.0), "ema_decay"
        )


def _resolution(conversion: Conversion, values: WrittenSettings) -> None:
    """Several sizes stand between commas, each a number or 768x512."""
    first, *more = str(values["resolution"]).replace(" ", "").split(",")
    conversion.values["resolution"] = first
    conversion.values["extra_resolutions"] = ", ".join(more) or None


def _loss(conversion: Conversion, values: WrittenSettings) -> None:
    strengths = {
        name: number(values.get(f"{key}_strength")) or 0.0
        for name, key in (("l2", "mse"), ("l1", "mae"), ("huber", "huber"))
    }
    strengths["l2"] = 1.0 if values.get("mse_strength") is None else strengths["l2"]
    strongest = max(strengths, key=lambda name: strengths[name])
    if strengths[strongest] and strongest != "l2":
        conversion.set(
            "loss_type", strongest, f"{'mae' if strongest == 'l1' else strongest}_strength"
        )
    for name, key in (("l2", "mse"), ("l1", "mae"), ("huber", "huber")):
        if name != strongest:
            conversion.skip(
                f"{key}_strength",
                strengths[name],
                f"losses are not added up here: Loss is {strongest}",
            )
    if strongest == "huber":
        conversion.set("huber_c", values.get("huber_delta", 1.0), "huber_delta")
        conversion.set("huber_schedule", "constant", "huber_strength")
    weight = str(values.get("loss_weight_fn", "CONSTANT")).upper()
    if weight == "MIN_SNR_GAMMA":
        conversion.values["min_snr_gamma"] = values.get("loss_weight_strength", 5.0)
    elif weight == "DEBIASED_ESTIMATION":
        conversion.values["debiased_estimation_loss"] = True
    elif weight != "CONSTANT":
        conversion.skip(
            "loss_weight_fn", weight, "Min-SNR gamma and Debiased estimation are what there is"
        )


def _timesteps(conversion: Conversion, values: WrittenSettings) -> None:
    low, high = (number(values.get(f"{end}_noising_strength")) for end in ("min", "max"))
    if low:
        conversion.set(
            "min_timestep", math.floor(min(max(low, 0.0), 1.0) * 1000), "min_noising_strength"
        )
    if high is not None and high < 1:
        conversion.set("max_timestep", math.ceil(max(high, 0.0) * 1000), "max_noising_strength")
    distribution = str(values.get("timestep_distribution", "UNIFORM")).upper()
    if distribution == "LOGIT_NORMAL":
        conversion.set("timestep_sampling", "logit_normal", "timestep_distribution")
        conversion.set("logit_mean", number(values.get("noising_bias")) or 0.0, "noising_bias")
        conversion.set(
            "logit_std", (number(values.get("noising_weight")) or 0.0) + 1.0, "noising_weight"
        )
    elif distribution != "UNIFORM":
        conversion.skip(
            "timestep_distribution", distribution, "uniform and logit_normal are what there is"
        )


def _masks(conversion: Conversion, values: WrittenSettings) -> None:
    """Masks lie beside the pictures as name-masklabel.png, as here."""
    if values.get("masked_training") is True:
        conversion.values["masked_loss"] = "files"
        conversion.set("masked_loss_floor", values.get("unmasked_weight", 0.1), "unmasked_weight")


def _precision(conversion: Conversion, values: WrittenSettings) -> None:
    for key, names, ours in (
        ("train_dtype", _NUMBERS, "mixed_precision"),
        ("output_dtype", _SAVED, "save_precision"),
    ):
        if key not in values:  # its fp16 needs a GPU; auto suits every machine
            continue
        if (found := names.get(str(values[key]).upper())) is not None:
            conversion.values[ours] = found
        else:
            conversion.skip(key, values[key], "these numbers are not offered")
    checkpointing = values.get("gradient_checkpointing", "ON")
    conversion.values["gradient_checkpointing"] = str(checkpointing).upper() not in ("OFF", "FALSE")
