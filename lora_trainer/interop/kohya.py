"""sd-scripts' (kohya's) names and habits: what its settings are called here, what it takes them to
be when they are not said, and what has no counterpart. Pure functions on mappings; `importing`
reads files and brings other programs' files into these names first.
"""

import ast
import contextlib
import dataclasses
import difflib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from ..base.errors import Refused
from ..base.text import number
from ..dataset.captions import CAPTION_ENDINGS
from ..settings.aliases import LONGEST_KEY
from ..settings.config import KOHYA_NAMES, TrainConfig, all_settings
from ..settings.files import MOST_KEYS, check_extent

NOT_NEEDED = "not needed here"
# the key of a LoRA's metadata that holds, as JSON, all settings of ours that made it
OUR_SETTINGS = "train_lora_settings"
# What sd-scripts takes when a file for `train_network.py` is silent, where that differs from our
# defaults.
DEFAULTS: dict[str, Any] = {
    "network_dim": 4,
    "network_alpha": 1.0,
    "learning_rate": 2e-6,
    "lr_scheduler": "constant",
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1.0,
    "optimizer_type": "AdamW",
    "max_token_length": 75,
    "enable_bucket": False,
    "min_bucket_reso": 256,
    "max_bucket_reso": 1024,
    "enable_wildcard": False,
}
DEFAULT_STEPS = 1600
MOST_RANK, LATENT_PX = 1024, 8
MOST_EPOCHS, MOST_SNAPSHOTS = 10_000, 10_000
LONGEST_ARGUMENTS = 10_000  # characters of --network_args or --optimizer_args
MOST_LITERAL = 1000  # characters; Python's parser runs out of memory over deep nonsense
NO_LITERAL = (
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    RecursionError,
    MemoryError,
)  # what it and `ast.literal_eval` raise
OPTIMIZERS = {  # sd-scripts' name in lower case: ours, and what is not quite the same
    "adamw": ("adamw", ""),
    "pagedadamw": ("adamw", "without paging"),
    "pagedadamw32bit": ("adamw", "without paging"),
    "adamw8bit": ("adamw8bit", ""),
    "pagedadamw8bit": ("adamw8bit", "without paging"),
    "lion": ("lion", ""),
    "lion8bit": ("lion", "in full precision"),
    "pagedlion8bit": ("lion", "in full precision, without paging"),
    "adafactor": ("adafactor", ""),
    "prodigy": ("prodigy", ""),
    "prodigyplusschedulefree": ("prodigy", "not schedule-free"),
    "dadaptation": ("dadaptation", ""),
    "dadaptadam": ("dadaptation", ""),
    "dadaptadampreprint": ("dadaptation", ""),
    "adamwschedulefree": ("schedulefree", ""),
    "radamschedulefree": ("schedulefree", "on AdamW, not RAdam"),
    "schedulefree": ("schedulefree", ""),
}
OPTIMIZER_CLASSES = {  # ours: the class that sd-scripts names in ss_optimizer
    "adamw": "torch.optim.adamw.AdamW",
    "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "lion": "lion_pytorch.lion_pytorch.Lion",
    "adafactor": "transformers.optimization.Adafactor",
    "prodigy": "prodigyopt.prodigy.Prodigy",
    "dadaptation": "dadaptation.dadapt_adam.DAdaptAdam",
    "schedulefree": "schedulefree.adamw_schedulefree.AdamWScheduleFree",
}
WEIGHT_DECAY = {"adamw": 0.01, "adamw8bit": 0.01}  # the packages' own; 0 for the others
SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "cosineannealinglr": "cosine",
    "cosineannealingwarmrestarts": "cosine_with_restarts",
    "onecyclelr": "one_cycle",
    "polynomiallr": "polynomial",
    "one_cycle": "one_cycle",
}
RATE_KEYS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
SIDE, SDXL_SIDE, SDXL_MIDDLE = (
    12,
    9,
    3,
)  # blocks on each side of the UNet's middle, and of SDXL's middle
CURVES = {  # sd-scripts' names for factors from the first block, 0, to the last, 1
    "cosine": lambda x: math.sin(math.pi / 2 * (1 - x)),
    "sine": lambda x: math.sin(math.pi / 2 * x),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda x: 0.0,
}
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
MODULES = {
    "networks.lora": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
    "networks.lora_fa": "lora",
    "locon.locon_kohya": "lora",
}
PRESETS = {  # LyCORIS' presets: our lora_targets, and whether the text encoder takes part
    "full": ("all", True),
    "full-lin": ("attention+feed-forward", True),
    "attn-mlp": ("attention+feed-forward", True),
    "attn-only": ("attention", True),
    "unet-only": ("all", False),
    "unet-transformer-only": ("attention+feed-forward", False),
}

_SPEED = "the base model, its attention and its memory are the host's, as they are set there"
_CACHED = "pictures and captions are always encoded once and kept"
_ALONE = "one process trains on one device"
_FIGURES = "figures are always kept, in the job's folder and for TensorBoard"
_PRIVATE = "nothing is sent anywhere"
_STATES = "progress is always kept, as Progress kept every says"
_DRAW = "draw pictures whenever you like while it trains; the card's preview is drawn at the end"
_MODEL = "the model's kind is seen from the checkpoint"
_FILE = "the file is always .safetensors with its metadata"
_NOT_NEEDED_KEYS = {
    _SPEED: (
        "xformers sdpa mem_eff_attn torch_compile dynamo_backend dynamo_mode dynamo_use_fullgraph"
        " dynamo_use_dynamic lowram highvram lowvram blocks_to_swap fused_backward_pass"
        " fused_optimizer_groups cpu_offload_checkpointing disable_mmap_load_safetensors"
        " no_half_vae sdxl_no_half_vae mem_efficient_save opt_channels_last attn_mode split_attn"
    ),
    _CACHED: (
        "cache_latents cache_latents_to_disk vae_batch_size cache_text_encoder_outputs"
        " cache_text_encoder_outputs_to_disk skip_cache_check cache_info"
        " sdxl_cache_text_encoder_outputs text_encoder_batch_size max_data_loader_n_workers"
        " persistent_data_loader_workers tokenizer_cache_dir resume_from_cache"
    ),
    _ALONE: (
        "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph multi_gpu num_processes"
        " num_machines gpu_ids main_process_port num_cpu_threads_per_process deepspeed zero_stage"
        " offload_optimizer_device offload_optimizer_nvme_path offload_param_device"
        " offload_param_nvme_path zero3_init_flag zero3_save_16bit_model"
        " fp16_master_weights_and_gradients extra_accelerate_launch_args accelerate_extra_args"
        " num_cpu_threads machine_rank main_process_ip"
    ),
    _FIGURES: (
        "log_with log_prefix log_tracker_name log_tracker_config log_config wandb_run_name"
        " use_wandb console_log_level console_log_file console_log_simple"
    ),
    _PRIVATE: (
        "wandb_api_key huggingface_repo_id huggingface_repo_type huggingface_path_in_repo"
        " huggingface_token huggingface_repo_visibility async_upload save_state_to_huggingface"
        " resume_from_huggingface"
    ),
    _STATES: "save_state save_state_on_train_end save_last_n_steps_state save_last_n_epochs_state",
    _DRAW: (
        "sample_every_n_steps sample_every_n_epochs sample_at_first sample_prompts sample_sampler"
        " enable_preview positive_prompts negative_prompts sample_width sample_height sample_cfg"
        " sample_seed sample_steps randomly_choice_prompt prompt_file"
    ),
    _MODEL: "v2 sdxl model_list model_train_type model_type sd3_checkbox flux1_checkbox",
    _FILE: (
        "save_model_as use_safetensors no_metadata training_comment metadata_author"
        " metadata_description metadata_license metadata_tags metadata_title"
    ),
    "it is a program's own note": (
        "config_file output_config dataset_class debug_dataset caption_extention folders"
        " stop_at_epoch skip_until_initial_step initial_epoch initial_step network_multiplier"
        " print_only headless use_shell"
    ),
    "the LoRA's weights are always fp32 while it trains": "full_fp16 full_bf16",
    "rank and layers of a LoRA that is gone on from are always taken over": "dim_from_weights",
    "only fine-tuning of whole checkpoints has it": (
        "learning_rate_te learning_rate_te1 learning_rate_te2 block_lr"
        " stop_text_encoder_training_pct no_token_padding"
    ),
    "validation always uses the same pictures, noise and timesteps": (
        "validation_seed max_validation_steps"
    ),
}
_NOT_NEEDED = {key: reason for reason, keys in _NOT_NEEDED_KEYS.items() for key in keys.split()}
_OTHER_MODELS = re.compile(
    r"(flux|sd3|t5|clip_[gl]|hunyuan|anima|lumina|ae_|gemma|llm_|qwen|chroma)|.*(t5xxl|flow_shift|guidance_scale|sigmoid_scale)|"
    r"(weighting_scheme|logit_mean|logit_std|mode_scale|apply_t5_attn_mask|model_prediction_type|timestep_sampling|ae|split_mode|split_qkv|train_blocks|"
    r"train_double_block_indices|train_single_block_indices|enable_all_linear|single_dim|single_mod_dim|txt_(attn|mlp|mod)_dim|img_(attn|mlp|mod)_dim|in_dims|"
    r"double_blocks_to_swap|single_blocks_to_swap|pos_emb_random_crop_rate|enable_scaled_pos_embed|save_clip|discrete_flow_shift)$"
)
_SECRETS = {"wandb_api_key", "huggingface_token"}
_CANNOT = {
    "adaptive_noise_scale": "noise offset does not follow the pictures' brightness here",
    "perlin_noise": "Perlin noise is not offered; Multi-resolution noise is near to it",
    "save_n_epoch_ratio": (
        "it is a share of the epochs, which the file does not say: set Snapshot every, in epochs"
    ),
    "save_last_n_steps": "it counts steps, and the file saves nothing by steps: set Snapshots kept",
    "resume": (
        "another program's training state cannot be gone on with; Go on from a LoRA takes its LoRA"
    ),
    "base_weights": "merge these LoRAs into a checkpoint first",
    "base_weights_multiplier": "merge these LoRAs into a checkpoint first",
    "enable_base_weight": "merge these LoRAs into a checkpoint first",
    "vae": "the VAE is the one that is loaded: choose it in the WebUI",
    "vae_path": "the VAE is the one that is loaded: choose it in the WebUI",
    "stop_text_encoder_training": "the text encoder learns to the end or not at all",
    "fp8_base": "the base model is used in the precision in which it is loaded",
    "fp8_base_unet": "the base model is used in the precision in which it is loaded",
    "caption_dropout_every_n_epochs": (
        "captions are dropped by chance: set Caption dropout to 1 / this number"
    ),
    "secondary_separator": "tags are parted by commas only",
    "caption_prefix": "write it into the captions: Edit many, Prepend; or use Trigger word",
    "caption_suffix": "write it into the captions: Edit many, Append",
    "token_warmup_step": "all tags are shown from the start",
    "face_crop_aug_range": "pictures are not cropped around faces; Random crop moves the crop",
    "class_tokens": (
        "pictures without a caption take the words of their folder's name, as in 10_red cat; or use"
        " Trigger word"
    ),
    "conditioning_data_dir": (
        "masks are looked for beside the pictures, as mask/name.png: put them there and set Mask to"
        " files"
    ),
    "resize_interpolation": "pictures are scaled with Lanczos",
    "huber_scale": "Huber's border is set by Huber's border alone",
    "lr_scheduler_args": "the schedule takes its own settings only",
    "lr_decay_steps": "only warmup_stable_decay has it",
    "lr_scheduler_timescale": "only inverse_sqrt has it",
    "lr_scheduler_min_lr_ratio": "only cosine_with_min_lr has it",
    "optimizer_schedulefree_wrapper": "choose the optimizer schedulefree",
    "schedulefree_wrapper_args": "choose the optimizer schedulefree",
    "custom_attributes": "it has no counterpart",
    "train_inpainting": "an inpainting checkpoint is trained as it is loaded",
    "deepspeed_config": "one process trains on one device",
    "additional_parameters": "it could not be read as --name value",
}
_CANNOT_IN_NETWORK = {
    "wd_on_output": "DoRA's magnitudes are those of the inputs here, as the WebUI reads them",
    "train_norm": "norm layers do not learn here",
    "use_tucker": "convolutions are taken apart without Tucker's form",
    "use_cp": "convolutions are taken apart without Tucker's form",
    "use_conv_cp": "convolutions are taken apart without Tucker's form",
    "use_scalar": "it has no counterpart",
    "rank_dropout_scale": "it has no counterpart",
    "bypass_mode": "it has no counterpart",
    "decompose_both": "only the larger part is taken apart",
    "full_matrix": "it has no counterpart",
    "unbalanced_factorization": "it has no counterpart",
    "constraint": "it belongs to OFT, which is not offered",
    "rescaled": "it belongs to OFT, which is not offered",
    "block_size": "it belongs to DyLoRA, which is not offered",
    "unit": "it belongs to DyLoRA, which is not offered",
    "train_on_input": "it belongs to IA3, which is not offered",
    "conv_block_dims": "convolutions have one rank in all blocks: Rank, convolutions",
    "conv_block_alphas": "convolutions have one alpha in all blocks: Alpha, convolutions",
    "verbose": "it is a program's own note",
    "train_t5xxl": "it belongs to models that are not trained here",
}


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Something that was not taken over as it stood: `key` and `value` as the source has them,
    `reason` a phrase for the user.
    """

    key: str
    value: Any
    reason: str


class Taking:
    """A source's values while they are used up: each ends in `settings` (our names) or in
    `left_out`, or meant nothing.

    `origin` is each setting's key in the source, `assumed` the names of those that the source did
    not say.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises `Refused` (code "no_settings") for more values than any trainer has settings."""
        refuse_too_many(values, "settings", MOST_KEYS)
        self.values = {
            str(key): cleaned
            for key, value in values.items()
            if (cleaned := clean(value)) is not None
        }
        self.settings: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.assumed: set[str] = set()
        self.left_out: list[LeftOut] = []

    def take(self, key: str, default: Any = None) -> Any:
        """Return a value, which is then used up."""
        return self.values.pop(key, default)

    def set(self, name: str, value: Any, key: str = "") -> None:
        self.settings[name], self.origin[name] = value, key or name

    def leave(self, key: str, value: Any, reason: str) -> None:
        """List something, unless it was off anyway."""
        if not is_off(value):
            self.left_out.append(LeftOut(key, "(not shown)" if key in _SECRETS else value, reason))

    def drop(self, key: str, reason: str) -> None:
        self.leave(key, self.take(key), reason)


def refuse_too_many(found: Sized, what: str, most: int) -> None:
    """Raise `Refused` (code "no_settings") for more than anybody has: reading on would take
    long.
    """
    if len(found) > most:
        raise Refused(
            f"It holds {len(found):,} {what}, and at most {most} are read: this is no file of"
            " settings.",
            code="no_settings",
        )


def clean(value: Any) -> Any:
    """Turn what means nothing ("", "None") into None, and words for yes and no into booleans; other
    text is stripped.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    return {"": None, "none": None, "null": None, "true": True, "false": False}.get(
        text.lower(), text
    )


def is_off(value: Any) -> bool:
    """Say whether a value means that something is not used."""
    return (
        value is None
        or value is False
        or value in ("", "0", "0.0", [], {}, ())
        or (isinstance(value, (int, float)) and value == 0)
    )


def arguments(value: Any) -> dict[str, Any]:
    """Read "name=value" pairs from a list, a text with blanks between them, or a mapping; what has
    no = is kept as a name with True.
    """
    if isinstance(value, (Mapping, list, tuple)):
        refuse_too_many(value, "arguments", MOST_KEYS)
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            found = (
                json.loads(value)
                if value.startswith(("[", "{"))
                else shlex.split(value[:LONGEST_ARGUMENTS])
            )
            check_extent(found)
            value = found
        except (ValueError, RecursionError):
            value = value[:LONGEST_ARGUMENTS].split()
        if isinstance(value, Mapping):
            return arguments(value)
    pairs = (str(item).partition("=") for item in (value if isinstance(value, Iterable) else []))
    return {
        name.strip(): clean(found.strip("\"' ")) if sign else True
        for name, sign, found in pairs
        if name.strip()
    }


# --- From sd-scripts' names to ours ---------------------------------------------------------------


def translate(taking: Taking, *, complete: bool) -> None:
    """Take sd-scripts' settings over into ours. A `complete` source says all of a run: what it does
    not name is as sd-scripts has it then.
    """
    said = set(taking.values)
    if complete:
        taking.values = {**DEFAULTS, **taking.values}
    sdxl = _model(taking)
    _network(taking, complete, sdxl=sdxl)
    _learning_rates(taking, complete)
    _optimizer(taking)
    _length_and_schedule(taking, complete)
    _snapshots(taking)
    _noise_and_loss(taking)
    _data(taking, said)
    _text(taking, said, sdxl=sdxl, complete=complete)
    _rest(taking)
    taking.assumed = {
        name
        for name, key in taking.origin.items()
        if key.endswith("(left out)") or (complete and key.split()[0] not in said)
    }


def _model(taking: Taking) -> bool:
    """Take what is said of the base model; tell whether it is SDXL, as far as one can see."""
    name, resolution = taking.take("pretrained_model_name_or_path"), taking.values.get("resolution")
    if isinstance(name, str) and name.lower().endswith((".safetensors", ".ckpt", ".pt")):
        taking.set("base_model", name, "pretrained_model_name_or_path")
    else:
        taking.leave(
            "pretrained_model_name_or_path",
            name,
            "it is not a checkpoint file: choose one that you have",
        )
    if taking.take("v_parameterization") is True:
        taking.set("prediction_type", "v_prediction", "v_parameterization")
    if taking.take("zero_terminal_snr") is True:
        taking.set("zero_terminal_snr", "on")
    marks = {"cache_text_encoder_outputs", "no_half_vae", "sdxl_cache_text_encoder_outputs"} & {
        key for key, value in taking.values.items() if value is True
    }
    kind = (
        str(taking.values.get("model_train_type", "")).startswith("sdxl")
        or taking.values.get("sdxl") is True
    )
    large = (sides := _sides(resolution)) is not None and sides[0] * sides[1] > 900**2
    return (
        bool(
            kind
            or marks
            or large
            or re.search(r"(?i)sdxl|[-_ ]xl|pony|illustrious|noob", str(name or ""))
        )
        and taking.values.get("sdxl") is not False
    )


def _network(taking: Taking, complete: bool, *, sdxl: bool) -> None:  # noqa: C901
    given = arguments(taking.take("network_args"))
    if "conv_dim" in taking.values:  # lora-scripts has these outside
        given = {**{key: taking.take(key) for key in ("conv_dim", "conv_alpha")}, **given}
    module = str(taking.take("network_module", "networks.lora" if complete else ""))
    lycoris = module.startswith("lycoris")
    algorithm = str(given.pop("algo", "lora")).lower()
    kind = ALGORITHMS.get(algorithm) if lycoris else MODULES.get(module, "" if not module else None)
    if kind is None:
        taking.leave(
            "network_module",
            f"{module} {algorithm}" if lycoris else module,
            "only lora, loha and lokr are trained here; an ordinary LoRA is taken instead",
        )
    elif module == "networks.lora_fa":
        taking.leave(
            "network_module",
            module,
            "an ordinary LoRA is trained instead: both of its halves learn",
        )
    if module:
        taking.set("lora_type", kind or "lora", "network_module")
    rank, alpha = taking.take("network_dim"), taking.take("network_alpha")
    if number(rank) is None and rank is not None:
        taking.leave("network_dim", rank, "it is not one number; Rank stays as it is")
        rank = None
    if kind == "lokr":
        rank = _whole(taking, "network_dim", rank)
        given.update(
            {"conv_dim": _whole(taking, "network_args conv_dim", given["conv_dim"])}
            if "conv_dim" in given
            else {}
        )
    if rank is not None:
        taking.set("lora_rank", rank, "network_dim")
        alpha = (
            rank if alpha is not None and number(alpha) == 0 else alpha
        )  # as sd-scripts reads an alpha of 0
    if alpha is not None:
        taking.set("lora_alpha", alpha, "network_alpha")
    _layers(taking, given, lycoris=lycoris, module=module, rank=number(rank), alpha=number(alpha))
    _blocks(taking, given, rank=number(rank), alpha=number(alpha))
    _block_rates(taking, given, sdxl=sdxl)
    _loraplus(taking, given, kind or "lora")
    _dropouts(taking, given, lycoris=lycoris)
    if True in [given.pop(name, False) for name in ("dora_wd", "weight_decompose")]:
        taking.set("use_dora", True, "network_args dora_wd")
    if given.pop("rs_lora", False) is True:
        taking.set("rslora", True, "network_args rs_lora")
    if not is_off(factor := given.pop("factor", None)) and kind == "lokr":
        taking.set("lokr_factor", factor, "network_args factor")
    for key, value in given.items():
        taking.leave(f"network_args {key}", value, _CANNOT_IN_NETWORK.get(key, _unknown(key, ())))


def _layers(
    taking: Taking,
    given: dict[str, Any],
    *,
    lycoris: bool,
    module: str,
    rank: float | None,
    alpha: float | None,
) -> None:
    """sd-scripts trains 3x3 convolutions where conv_dim is given; LyCORIS does unless its preset
    says otherwise.
    """
    conv_rank, conv_alpha = given.pop("conv_dim", None), given.pop("conv_alpha", None)
    preset, targets, encoder = given.pop("preset", None), given.pop("targets", None), True
    conv_on = conv_rank is not None and number(conv_rank) != 0
    if lycoris:
        found = PRESETS.get(str(preset or "full"))
        if found is None:
            taking.leave(
                "network_args preset",
                preset,
                "this choice of layers is not known; all layers are taken",
            )
        targets, encoder = found or ("all", True)
        conv_rank, conv_alpha = (
            (conv_rank if conv_on else rank),
            (conv_alpha if not is_off(conv_alpha) else alpha),
        )
    elif module or conv_on:
        targets = "all" if conv_on else targets or "attention+feed-forward"
        conv_alpha = 1.0 if conv_alpha is None else conv_alpha
    if targets:
        taking.set("lora_targets", targets, "network_module")
    if targets == "all" and conv_rank is not None:
        taking.set("conv_rank", conv_rank, "network_args conv_dim")
        taking.set(
            "conv_alpha",
            conv_rank if number(conv_alpha) == 0 else conv_alpha,
            "network_args conv_alpha",
        )
    if not encoder:
        taking.values["network_train_unet_only"] = True


def _whole(taking: Taking, key: str, rank: Any) -> Any:
    """LoKr's users write a rank beyond every layer's for whole matrices; the highest here does the
    same.
    """
    if (number(rank) or 0) <= MOST_RANK:
        return rank
    taking.leave(key, rank, f"{MOST_RANK} is taken, which gives whole matrices, too")
    return MOST_RANK


def _dropouts(taking: Taking, given: dict[str, Any], *, lycoris: bool) -> None:
    dropout, own = taking.take("network_dropout"), given.pop("dropout", None)
    if not is_off(chosen := own if lycoris and own is not None else dropout):
        key = "network_args dropout" if chosen is own else "network_dropout"
        taking.set("lora_dropout", chosen, key)
        taking.leave(
            key,
            chosen,
            "taken over, but not alike: Dropout leaves out the LoRA's inputs here"
            + ("" if lycoris else "; kohya's leaves out what lies between its two halves"),
        )
    for name in ("rank_dropout", "module_dropout"):
        if not is_off(value := given.pop(name, None)):
            taking.set(name, value, f"network_args {name}")


def _blocks(
    taking: Taking, given: dict[str, Any], *, rank: float | None, alpha: float | None
) -> None:
    """Turn ranks of all blocks into the WebUI's names of blocks."""
    dims, alphas = numbers(given.pop("block_dims", None)), numbers(given.pop("block_alphas", None))
    if dims is not None:
        names = block_list(dims, alphas or [alpha or 1.0] * len(dims), rank=rank, alpha=alpha)
        if names is None:
            taking.leave(
                "network_args block_dims",
                dims,
                "there are 25 blocks of SD1 and SD2 and 23 of SDXL, those of its middle alike here",
            )
        elif names:
            taking.set("lora_blocks", names, "network_args block_dims")
    elif not is_off(alphas):
        taking.leave("network_args block_alphas", alphas, "it counts only with block_dims")


def _block_rates(taking: Taking, given: dict[str, Any], *, sdxl: bool) -> None:
    """Turn factors of the learning rate, a list or a curve for each part of the UNet, into the
    WebUI's names of blocks.
    """
    weights = {key: given.pop(key, None) for key in RATE_KEYS}
    threshold = number(given.pop("block_lr_zero_threshold", None)) or 0.0
    middle = numbers(weights["mid_lr_weight"])
    sdxl = sdxl or len(middle or ()) == SDXL_MIDDLE
    side = SDXL_SIDE if sdxl else SIDE
    found = {
        key: rate_curve(value, SDXL_MIDDLE * sdxl or 1 if key == "mid_lr_weight" else side)
        for key, value in weights.items()
    }
    for key in [key for key, curve in found.items() if curve is None]:
        taking.leave(
            f"network_args {key}",
            weights[key],
            "it is neither a list of factors from 0 nor one of " + ", ".join(CURVES),
        )
        found[key] = rate_curve(None, SDXL_MIDDLE if key == "mid_lr_weight" else side)
    down, middle, up = (
        [factor if factor > threshold else 0.0 for factor in found[key]] for key in RATE_KEYS
    )
    if len(set(middle)) > 1:
        taking.leave(
            "network_args mid_lr_weight",
            weights["mid_lr_weight"],
            f"the middle learns at one rate here: {middle[0]:g} is taken",
        )
    if text := block_rates_text([*down, middle[0], *up]):
        taking.set(
            "block_learning_rates",
            text,
            f"network_args {next(key for key in RATE_KEYS if weights[key] is not None)}",
        )


def _loraplus(taking: Taking, given: dict[str, Any], kind: str) -> None:
    """Both ratios may have one of their own; an algorithm without two halves passes over them, as
    in sd-scripts.
    """
    common, unet, encoder = (
        given.pop(f"loraplus_{part}lr_ratio", None) for part in ("", "unet_", "text_encoder_")
    )
    if kind != "lora":
        taking.leave(
            "network_args loraplus_lr_ratio",
            common or unet or encoder,
            f"a {kind} has no halves that could learn at two rates",
        )
        return
    if not is_off(ratio := common if is_off(unet) else unet):
        taking.set(
            "loraplus_lr_ratio",
            ratio,
            f"network_args loraplus_{'' if is_off(unet) else 'unet_'}lr_ratio",
        )
    own = (
        encoder if not is_off(encoder) else (common or 1.0) if not is_off(unet) else None
    )  # where only the UNet has one
    if own is not None and number(own) != number(ratio):
        taking.set(
            "loraplus_text_encoder_lr_ratio", own, "network_args loraplus_text_encoder_lr_ratio"
        )


def rate_curve(value: Any, length: int) -> list[float] | None:
    """Read the factors of so many blocks as sd-scripts does: a list, filled up with 1, or
    "cosine+0.25", a curve that is raised. None for anything else.
    """
    if value is None:
        return [1.0] * length
    name, _, offset = str(value).partition("+")
    if name in CURVES:
        base = number(offset or 0.0)
        return (
            None
            if base is None
            else [round(CURVES[name](at / max(1, length - 1)) + base, 6) for at in range(length)]
        )
    items = value.split(",") if isinstance(value, str) else value
    factors = numbers(
        [item if str(item).strip() else 0 for item in items]
        if isinstance(items, (list, tuple))
        else items
    )
    if factors is None or min(factors, default=0) < 0 or (length > 1 and len(factors) == 1):
        return None
    return [*factors[:length], *[1.0] * (length - len(factors))]


def block_rates_text(factors: list[float]) -> str:
    """Write the factors of IN00 to OUT11, or OUT08, as `block_learning_rates`; "" when all are
    1.
    """
    half = len(factors) // 2
    names = [*(f"IN{at:02}" for at in range(half)), "MID", *(f"OUT{at:02}" for at in range(half))]
    parts: list[tuple[str, str, float]] = []
    for name, factor in zip(names, factors, strict=True):
        if parts and parts[-1][2] == factor and name[:2] == parts[-1][0][:2]:
            parts[-1] = (parts[-1][0], name, factor)
        else:
            parts.append((name, name, factor))
    return ", ".join(
        f"{first if first == last else f'{first}-{last}'}={factor:.10g}"
        for first, last, factor in parts
        if factor != 1
    )


def numbers(value: Any) -> list[float] | None:
    """Read "1,2,3" or a list; None when there is something else in it."""
    if value is None or isinstance(value, bool):
        return None
    found = [
        number(item)
        for item in (
            value.split(",")
            if isinstance(value, str)
            else value
            if isinstance(value, (list, tuple))
            else [value]
        )
    ]
    return None if None in found else found


def block_list(
    ranks: list[float], alphas: list[float], *, rank: float | None, alpha: float | None
) -> str | None:
    """Write ranks and alphas of every block, in sd-scripts' order, as `lora_blocks`: "IN04-IN08,
    MID=64:32"; "" when all are as usual.

    25 values are IN00-IN11, MID, OUT00-OUT11; 23 are SDXL's embeddings (which do not learn),
    IN00-IN08, three of the middle, OUT00-OUT08, the last layer. None for another number, no block
    at all, or a middle of three kinds.
    """
    if len(ranks) != len(alphas) or len(ranks) not in (23, 25):
        return None
    pairs = list(zip(ranks, alphas, strict=True))
    if len(pairs) == 23:
        if len(set(pairs[10:13])) > 1:
            return None
        pairs = [*pairs[1:10], pairs[10], *pairs[13:22]]
    half = len(pairs) // 2
    if all(pair == (rank, alpha) for pair in pairs) or not any(pair[0] for pair in pairs):
        return "" if any(pair[0] for pair in pairs) else None
    names = [*(f"IN{at:02}" for at in range(half)), "MID", *(f"OUT{at:02}" for at in range(half))]
    parts: list[tuple[str, str, tuple[float, float]]] = []
    for name, pair in zip(names, pairs, strict=True):
        if parts and parts[-1][2] == pair and name[:2] == parts[-1][0][:2]:
            parts[-1] = (parts[-1][0], name, pair)
        else:
            parts.append((name, name, pair))
    return ", ".join(
        (first if first == last else f"{first}-{last}")
        + ("" if pair == (rank, alpha) else f"={pair[0]:g}:{pair[1]:g}")
        for first, last, pair in parts
        if pair[0]
    )


def _learning_rates(taking: Taking, complete: bool) -> None:
    """sd-scripts trains both at learning_rate, unless one has its own or is told to stay; a rate of
    0 does not train.
    """
    common, unet, encoder = (
        taking.take(key) for key in ("learning_rate", "unet_lr", "text_encoder_lr")
    )
    if isinstance(encoder, str) and encoder.startswith(("[", "(")):
        encoder = numbers(encoder.strip("[]() ")) or encoder
    if isinstance(encoder, (list, tuple)):
        if len(set(map(number, encoder))) > 1:
            taking.leave(
                "text_encoder_lr", encoder, f"both text encoders learn at one rate: {encoder[0]}"
            )
        encoder = encoder[0] if encoder else None
    unet_only, encoder_only = (
        taking.take(f"network_train_{part}_only") is True for part in ("unet", "text_encoder")
    )
    if (rate := common if unet is None else unet) is not None and number(rate) != 0:
        taking.set("learning_rate", rate, "learning_rate" if unet is None else "unet_lr")
        if (
            unet is not None
            and common is not None
            and encoder is not None
            and number(common) not in (number(unet), number(encoder), 0, DEFAULTS["learning_rate"])
        ):
            taking.leave(
                "learning_rate",
                common,
                f"{NOT_NEEDED}: the UNet and the text encoder have their own",
            )
    if encoder_only or (unet is not None and number(unet) == 0):
        taking.set(
            "train_unet", False, "network_train_text_encoder_only" if encoder_only else "unet_lr"
        )
    trains = not unet_only and (encoder is None or number(encoder) != 0)
    if complete or unet_only or encoder_only or encoder is not None:
        taking.set(
            "train_text_encoder",
            trains,
            (
                "network_train_unet_only"
                if unet_only
                else (
                    "text_encoder_lr"
                    if encoder is not None
                    else "network_train_unet_only (left out)"
                )
            ),
        )
    if (
        trains
        and (complete or encoder is not None)
        and (rate := common if encoder is None else encoder) is not None
    ):
        taking.set(
            "text_encoder_lr", rate, "learning_rate" if encoder is None else "text_encoder_lr"
        )


def _optimizer(taking: Taking) -> None:  # noqa: C901
    name = taking.take("optimizer_type")
    for flag, meant in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        name = meant if taking.take(flag) is True else name
    given = arguments(taking.take("optimizer_args"))
    if name is None and not given:
        return
    short = str(name or "adamw").rpartition(".")[2].lower().replace("_", "")
    ours, difference = OPTIMIZERS.get(short, (None, ""))
    if ours is None:
        taking.leave(
            "optimizer_type", name, "this optimizer is not offered; Optimizer stays as it is"
        )
        for key, value in given.items():
            taking.leave(f"optimizer_args {key}", value, f"it belongs to {name}")
        return
    if difference:
        taking.leave("optimizer_type", name, f"{ours} is taken instead, {difference}")
    if name is not None:
        taking.set("optimizer", ours, "optimizer_type")
        decays = number(given.get("weight_decay"))
        taking.set(
            "weight_decay",
            given.pop("weight_decay", WEIGHT_DECAY.get(ours, 0.0)),
            "optimizer_type" if decays is None else "optimizer_args weight_decay",
        )
        if ours == "dadaptation" and decays:
            given.setdefault("decouple", False)  # the package's default, which is not ours
    if ours == "adafactor" and name is not None:
        relative = given.pop("relative_step", True) is not False
        given.pop("warmup_init", None)
        if relative:
            taking.leave(
                "optimizer_args relative_step",
                True,
                "Adafactor does not find its own learning rate here: Learning rate and Schedule"
                " count",
            )
        else:
            given.setdefault("scale_parameter", True)  # the package's default, which is not ours
    if given:
        taking.set(
            "optimizer_args",
            " ".join(f"{key}={_plain(value)}" for key, value in given.items()),
            "optimizer_args",
        )


def _plain(value: Any) -> str:
    if isinstance(value, str) and len(value) <= MOST_LITERAL:
        with contextlib.suppress(*NO_LITERAL):
            value = ast.literal_eval(value)
    return (
        ",".join(map(str, value))
        if isinstance(value, (list, tuple))
        else str(value).replace(" ", "")
    )


def _length_and_schedule(taking: Taking, complete: bool) -> None:
    epochs, steps = (
        taking.take("max_train_epochs", taking.take("num_train_epochs")),
        taking.take("max_train_steps"),
    )
    if not is_off(epochs):
        taking.set("epochs", epochs, "max_train_epochs")
        if not is_off(steps):
            taking.leave(
                "max_train_steps",
                steps,
                f"{NOT_NEEDED}: the number of epochs decides, as in sd-scripts",
            )
        steps = None
    elif not is_off(steps) or complete:
        steps = DEFAULT_STEPS if is_off(steps) else steps
        taking.set("max_train_steps", steps)
    custom, named = taking.take("lr_scheduler_type"), taking.take("lr_scheduler")
    name = str(custom or named or "").rpartition(".")[2].lower()
    schedule = SCHEDULES.get(name)
    if name and schedule is None:
        schedule = "constant" if name.startswith("adafactor") else None
        taking.leave(
            "lr_scheduler_type" if custom else "lr_scheduler",
            custom or named,
            (
                "Adafactor does not choose its own learning rate here; constant is taken"
                if schedule
                else "this schedule is not offered; Schedule stays as it is"
            ),
        )
    if schedule:
        taking.set("scheduler", schedule, "lr_scheduler")
    for theirs, ours, where in (
        ("lr_scheduler_num_cycles", "scheduler_cycles", "cosine_with_restarts"),
        ("lr_restart_cycles", "scheduler_cycles", "cosine_with_restarts"),
        ("lr_scheduler_power", "scheduler_power", "polynomial"),
    ):
        if (
            (value := taking.take(theirs)) is not None
            and schedule in (where, None)
            and not is_off(value)
            and ours not in taking.settings
        ):
            taking.set(ours, value, theirs)
    _warm_up(taking, number(steps), constant=name == "constant")


def _snapshots(taking: Taking) -> None:
    """sd-scripts keeps the last n epochs' snapshots by number, those by steps that are n steps old
    at most.
    """
    ratio, epochs = (
        number(taking.values.get("save_n_epoch_ratio")),
        number(taking.settings.get("epochs")),
    )
    if ratio and ratio > 0 and epochs:
        taking.take("save_n_epoch_ratio")
        taking.set(
            "save_every_n_epochs",
            max(1, int(min(epochs / ratio, MOST_EPOCHS))),
            "save_n_epoch_ratio",
        )
    steps, every = (
        number(taking.values.get(key)) for key in ("save_last_n_steps", "save_every_n_steps")
    )
    if not steps or not every or every <= 0:
        return
    taking.take("save_last_n_steps")
    count, by_epochs = (
        int(min(steps // every, MOST_SNAPSHOTS)) + 1,
        number(taking.values.get("save_last_n_epochs")),
    )
    if by_epochs and by_epochs > count:
        reason = (
            "Snapshots kept counts those by epochs and by steps together: the larger number is"
            " taken"
        )
        taking.leave("save_last_n_steps", steps, reason)
        return
    taking.take("save_last_n_epochs")
    taking.set("keep_snapshots", count, "save_last_n_steps")


def _warm_up(taking: Taking, total_steps: float | None, *, constant: bool) -> None:
    """Below 1 it is a share of all steps."""
    value = taking.take("lr_warmup_steps")
    share = number(value)
    if is_off(value):
        return
    if constant:
        taking.leave(
            "lr_warmup_steps",
            value,
            f"{NOT_NEEDED}: in sd-scripts constant has no warm-up; constant_with_warmup has",
        )
    elif share is None or share >= 1:
        taking.set("lr_warmup_steps", value)
    elif total_steps:
        taking.set("lr_warmup_steps", int(share * total_steps))
    else:
        taking.leave(
            "lr_warmup_steps",
            value,
            f"it is {share:.0%} of all steps, whose number depends on the pictures: set Warm-up to"
            " that part of the steps that the plan shows",
        )


def _noise_and_loss(taking: Taking) -> None:
    for key in ("noise_offset_random_strength", "ip_noise_gamma_random_strength"):
        amount = taking.values.get(key.removesuffix("_random_strength"))
        if taking.take(key) is True and not is_off(amount):
            taking.set(KOHYA_NAMES[key], True, key)
    if is_off(taking.values.get("multires_noise_iterations")):
        taking.take("multires_noise_discount")
    if str(taking.values.get("loss_type", "")) not in ("huber", "smooth_l1"):
        taking.take("huber_c")
        taking.take("huber_schedule")
    if number(taking.values.get("huber_scale")) == 1:
        taking.take("huber_scale")
    if number(taking.values.get("validate_every_n_epochs")) not in (None, 1):
        taking.leave(
            "validate_every_n_epochs",
            taking.values["validate_every_n_epochs"],
            "validation is measured once an epoch, or every so many steps: Measured every",
        )
    taking.take("validate_every_n_epochs")


def _data(taking: Taking, said: set[str]) -> None:  # noqa: C901
    if 0 < (number(step := taking.values.get("bucket_reso_steps")) or 0) < LATENT_PX:
        taking.leave(
            "bucket_reso_steps",
            step,
            f"{LATENT_PX} is taken: the model sees pictures in squares of {LATENT_PX} pixels",
        )
        taking.values["bucket_reso_steps"] = LATENT_PX
    if (resolution := taking.values.get("resolution")) is not None:
        sides = _sides(resolution)
        taking.values["resolution"] = round(math.sqrt(sides[0] * sides[1])) if sides else resolution
        if sides and sides[0] != sides[1] and taking.values.get("enable_bucket", True) is False:
            taking.leave(
                "resolution",
                resolution,
                "without buckets pictures are cropped to a square here:"
                f" {taking.values['resolution']} pixels, of the same area",
            )
    if taking.values.get("enable_bucket") is False:
        for key in {"min_bucket_reso", "max_bucket_reso"} - said:
            taking.take(key)
    if taking.take("color_aug") is True:
        taking.set("color_jitter", 0.05, "color_aug")
    mask, alpha = taking.take("masked_loss"), taking.take("alpha_mask")
    if alpha is True:
        taking.set("masked_loss", "alpha", "alpha_mask")
    elif mask is True:
        taking.leave("masked_loss", True, _CANNOT["conditioning_data_dir"])
    elif mask in ("alpha", "files"):
        taking.set("masked_loss", mask)
    if number(taking.values.get("token_warmup_min")) == 1 or is_off(
        taking.values.get("token_warmup_step")
    ):
        taking.take("token_warmup_min")
    if taking.values.get("caption_separator") == ",":
        taking.take("caption_separator")
    taking.drop("caption_separator", "tags are parted by commas only")
    _captions(taking)


def _captions(taking: Taking) -> None:
    """sd-scripts draws a line of a caption with enable_wildcard, and else reads the first one
    only.
    """
    extension = taking.take("caption_extension")
    if extension is not None and (ending := f".{str(extension).lstrip('.')}") in CAPTION_ENDINGS:
        taking.set("caption_extension", ending)
    else:
        taking.leave(
            "caption_extension",
            extension,
            "captions are read from .txt and .caption files beside the pictures, or from a table:"
            " rename them",
        )
    if (draws := taking.take("enable_wildcard")) is not None:
        taking.set("caption_lines", "alternatives" if draws is True else "first", "enable_wildcard")
    if draws is True:
        taking.set("caption_wildcards", True, "enable_wildcard")


def _sides(value: Any) -> tuple[float, float] | None:
    """Read kohya's resolution: 512, "512,768", "(512, 768)", [512, 768]."""
    found = numbers(
        re.sub(r"[()\[\] ]", "", value).replace("x", ",") if isinstance(value, str) else value
    )
    return (
        (found[0], found[-1])
        if found and len(found) in (1, 2) and min(found) > 0 and math.isfinite(found[0] * found[-1])
        else None
    )


def _text(taking: Taking, said: set[str], *, sdxl: bool, complete: bool) -> None:
    """Without clip_skip sd-scripts reads SD1's text encoder to its last layer, our 1; SD2 and SDXL
    always at the layer that they were made with, our 0.
    """
    skip, sd2 = taking.take("clip_skip"), taking.values.get("v2") is True
    if sdxl and not is_off(skip):
        taking.leave(
            "clip_skip",
            skip,
            f"{NOT_NEEDED}: SDXL is always read at the layer that it was made with",
        )
    elif not is_off(skip):
        taking.set("clip_skip", skip)
    elif complete and not sdxl and not sd2:
        taking.set("clip_skip", 1, "clip_skip" if "clip_skip" in said else "clip_skip (left out)")


def _rest(taking: Taking) -> None:
    """Take over what has the same meaning, and say of all else why not."""
    known = {setting.name: setting for setting in all_settings()}
    for key, value in list(taking.values.items()):
        name = KOHYA_NAMES.get(key, key)
        if name in known and name not in taking.settings and not _OTHER_MODELS.fullmatch(key):
            if not (is_off(value) and is_off(known[name].default)):
                taking.set(name, value, key)
        elif name in taking.settings:
            taking.leave(key, value, f"{NOT_NEEDED}: another setting of the file says so already")
        else:
            taking.leave(key, value, why_not(key, known=known))


def why_not(key: str, *, known: Iterable[str]) -> str:
    """Say why a key of sd-scripts or its GUIs is not taken over."""
    if key in _NOT_NEEDED:
        return f"{NOT_NEEDED}: {_NOT_NEEDED[key]}"
    if key in _CANNOT:
        return _CANNOT[key]
    if _OTHER_MODELS.match(key):
        return (
            f"{NOT_NEEDED}: it belongs to models that are not trained here (Flux, SD3 and others)"
        )
    return _unknown(key, [*known, *KOHYA_NAMES])


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key[:LONGEST_KEY], list(known), n=1, cutoff=0.75)
    return "this setting is not known here" + (f"; is {near[0]} meant?" if near else "")


# --- Checking -------------------------------------------------------------------------------------


def keep_valid(taking: Taking) -> dict[str, Any]:
    """Return the settings that `TrainConfig` takes; the others are listed with its sentence."""
    valid = {}
    for name, value in taking.settings.items():
        try:
            valid[name] = getattr(TrainConfig.parse({name: value}), name)
        except Refused as error:
            taking.left_out.append(LeftOut(taking.origin[name], value, error.message))
    return valid
