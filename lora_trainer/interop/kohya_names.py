"""sd-scripts' (kohya's) names in tables: what its settings are called here, what it takes them
to be when a file does not give them, and why others have no counterpart. `kohya` translates by
them.
"""

import difflib
import math
import re
from collections.abc import Iterable

from ..settings.aliases import LONGEST_KEY
from ..settings.config import KOHYA_NAMES

NOT_NEEDED = "not needed here"


# the key of a LoRA's metadata that holds, as JSON, all settings of ours that made it
OUR_SETTINGS_KEY = "train_lora_settings"


# What sd-scripts takes when a file for `train_network.py` is silent, where that differs from our
# defaults.
DEFAULTS: dict[str, object] = {
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


MOST_RANK = 1024
LATENT_PX = 8  # the side of the square of pixels behind one pixel of a latent
MOST_EPOCHS = 10_000
MOST_SNAPSHOTS = 10_000


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


SCHEDULE_OPTIONS = (  # sd-scripts' name, ours, and the schedule that has this option
    ("lr_scheduler_num_cycles", "scheduler_cycles", "cosine_with_restarts"),
    ("lr_restart_cycles", "scheduler_cycles", "cosine_with_restarts"),
    ("lr_scheduler_power", "scheduler_power", "polynomial"),
)


RATE_KEYS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")


SIDE = 12  # blocks on each side of the UNet's middle
SDXL_SIDE = 9  # the same for SDXL
SDXL_MIDDLE = 3  # blocks of SDXL's middle


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


KEYS_NOT_NEEDED = {
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


NOT_NEEDED_KEYS = {key: reason for reason, keys in KEYS_NOT_NEEDED.items() for key in keys.split()}


OTHER_MODELS = re.compile(
    r"(flux|sd3|t5|clip_[gl]|hunyuan|anima|lumina|ae_|gemma|llm_|qwen|chroma)|.*(t5xxl|flow_shift|guidance_scale|sigmoid_scale)|"
    r"(weighting_scheme|logit_mean|logit_std|mode_scale|apply_t5_attn_mask|model_prediction_type|timestep_sampling|ae|split_mode|split_qkv|train_blocks|"
    r"train_double_block_indices|train_single_block_indices|enable_all_linear|single_dim|single_mod_dim|txt_(attn|mlp|mod)_dim|img_(attn|mlp|mod)_dim|in_dims|"
    r"double_blocks_to_swap|single_blocks_to_swap|pos_emb_random_crop_rate|enable_scaled_pos_embed|save_clip|discrete_flow_shift)$"
)


SECRETS = {"wandb_api_key", "huggingface_token"}


CANNOT = {
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


CANNOT_IN_NETWORK = {
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


def why_not(key: str, *, known: Iterable[str]) -> str:
    """Say why a key of sd-scripts or its GUIs is not taken over."""
    if key in NOT_NEEDED_KEYS:
        return f"{NOT_NEEDED}: {NOT_NEEDED_KEYS[key]}"
    if key in CANNOT:
        return CANNOT[key]
    if OTHER_MODELS.match(key):
        return (
            f"{NOT_NEEDED}: it belongs to models that are not trained here (Flux, SD3 and others)"
        )
    return unknown_setting(key, [*known, *KOHYA_NAMES])


def unknown_setting(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key[:LONGEST_KEY], list(known), n=1, cutoff=0.75)
    return "this setting is not known here" + (f"; is {near[0]} meant?" if near else "")
