"""Settings files of other trainers as their programs write them, and what is read from them."""

import json
import math
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.interop.readers import import_settings
from lora_trainer.settings.config import TrainConfig

needs_toml = pytest.mark.skipif(
    find_spec("tomllib") is None and find_spec("tomli") is None,
    reason="Python 3.10 without tomli",
)


# As kohya_ss' page saves it (v25), shortened to what differs from nothing.
GUI = {
    "LoRA_type": "Standard",
    "LyCORIS_preset": "full",
    "adaptive_noise_scale": 0.005,
    "additional_parameters": (
        "--max_grad_norm 0.5 --optimizer_args weight_decay=0.2 --weighted_captions"
    ),
    "block_alphas": "",
    "block_dims": "",
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64,
    "cache_latents": True,
    "caption_dropout_rate": 0.05,
    "caption_extension": ".txt",
    "clip_skip": 2,
    "color_aug": False,
    "conv_alpha": 1,
    "conv_dim": 1,
    "enable_bucket": True,
    "epoch": 12,
    "factor": -1,
    "flip_aug": True,
    "full_bf16": False,
    "gradient_accumulation_steps": 2.0,
    "gradient_checkpointing": True,
    "guidance_scale": 3.5,
    "keep_tokens": "1",
    "learning_rate": 0.0001,
    "lora_network_weights": "",
    "lr_scheduler": "cosine_with_restarts",
    "lr_scheduler_num_cycles": "",
    "lr_scheduler_power": "",
    "lr_warmup": 10,
    "max_bucket_reso": 2048,
    "max_resolution": "512,512",
    "max_timestep": 1000,
    "max_token_length": "150",
    "max_train_epochs": "",
    "max_train_steps": "",
    "min_bucket_reso": 256,
    "min_snr_gamma": 5,
    "mixed_precision": "bf16",
    "multires_noise_discount": 0.2,
    "multires_noise_iterations": 8,
    "network_alpha": 16,
    "network_dim": 32,
    "network_dropout": 0,
    "noise_offset": 0.05,
    "noise_offset_type": "Original",
    "num_cpu_threads_per_process": 2,
    "optimizer": "AdamW8bit",
    "optimizer_args": "",
    "output_dir": "/loras",
    "output_name": "mine",
    "pretrained_model_name_or_path": "/models/a.safetensors",
    "prior_loss_weight": 1.0,
    "rank_dropout": 0.1,
    "save_every_n_epochs": 1,
    "save_precision": "fp16",
    "sdxl": False,
    "seed": "0",
    "shuffle_caption": True,
    "text_encoder_lr": 5e-05,
    "train_batch_size": 3,
    "train_data_dir": "/pictures",
    "train_on_input": True,
    "unet_lr": 0.0002,
    "unit": 1,
    "use_cp": False,
    "v2": False,
    "v_parameterization": False,
    "xformers": "xformers",
}


def imported(tmp_path, content, name="run.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    found = import_settings(path)
    assert TrainConfig.parse(found.settings)
    return found


def left(found):
    return {item.key: item.reason for item in found.left_out}


def lora(tmp_path, metadata, names=("lora_unet_a.lora_down.weight",), rank=4):
    save_file(
        {name: torch.zeros(rank, 8) for name in names},
        str(tmp_path / "x.safetensors"),
        metadata=metadata,
    )
    return import_settings(tmp_path / "x.safetensors")


KOHYAS_LORA = {  # as sd-scripts writes it
    "ss_session_id": "123",
    "ss_training_started_at": "1700000000.1",
    "ss_output_name": "zib",
    "ss_learning_rate": "0.0001",
    "ss_text_encoder_lr": "[5e-05, 5e-05]",
    "ss_unet_lr": "0.0001",
    "ss_num_train_images": "300",
    "ss_num_reg_images": "0",
    "ss_num_batches_per_epoch": "150",
    "ss_num_epochs": "10",
    "ss_gradient_checkpointing": "True",
    "ss_gradient_accumulation_steps": "1",
    "ss_max_train_steps": "1500",
    "ss_lr_warmup_steps": "100",
    "ss_lr_scheduler": "cosine",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_network_dropout": "None",
    "ss_mixed_precision": "fp16",
    "ss_full_fp16": "False",
    "ss_v2": "False",
    "ss_base_model_version": "sd_v1",
    "ss_clip_skip": "2",
    "ss_max_token_length": "225",
    "ss_cache_latents": "True",
    "ss_seed": "42",
    "ss_lowram": "False",
    "ss_noise_offset": "0.0357",
    "ss_multires_noise_iterations": "None",
    "ss_multires_noise_discount": "0.3",
    "ss_adaptive_noise_scale": "None",
    "ss_zero_terminal_snr": "False",
    "ss_training_comment": "None",
    "ss_sd_scripts_commit_hash": "abc",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=[0.9, 0.99])",
    "ss_max_grad_norm": "1.0",
    "ss_caption_dropout_rate": "0.0",
    "ss_caption_dropout_every_n_epochs": "0",
    "ss_caption_tag_dropout_rate": "0.0",
    "ss_face_crop_aug_range": "None",
    "ss_prior_loss_weight": "1.0",
    "ss_min_snr_gamma": "5.0",
    "ss_scale_weight_norms": "None",
    "ss_ip_noise_gamma": "None",
    "ss_debiased_estimation": "True",
    "ss_batch_size_per_device": "2",
    "ss_total_batch_size": "2",
    "ss_resolution": "(512, 768)",
    "ss_color_aug": "False",
    "ss_flip_aug": "False",
    "ss_random_crop": "False",
    "ss_shuffle_caption": "True",
    "ss_enable_bucket": "True",
    "ss_bucket_no_upscale": "True",
    "ss_min_bucket_reso": "256",
    "ss_max_bucket_reso": "1024",
    "ss_keep_tokens": "1",
    "ss_dataset_dirs": json.dumps({"10_zib": {"n_repeats": 10, "img_count": 30}}),
    "ss_reg_dataset_dirs": "{}",
    "ss_tag_frequency": json.dumps({"10_zib": {"zib": 30}}),
    "ss_bucket_info": "null",
    "ss_network_args": json.dumps({"conv_dim": "8", "conv_alpha": "4", "dropout": None}),
    "ss_sd_model_name": "animefull.ckpt",
    "ss_sd_model_hash": "abc",
    "ss_steps": "1500",
    "ss_epoch": "10",
    "sshs_model_hash": "x",
    "sshs_legacy_hash": "y",
    "ss_loss_type": "l2",
    "ss_huber_c": "0.1",
    "ss_huber_schedule": "snr",
    "ss_huber_scale": "1.0",
    "ss_validation_split": "0.0",
    "modelspec.title": "zib",
    "modelspec.timestep_range": "100,800",
}


ODD = [
    "abc",
    -1,
    1e99,
    math.inf,
    [1],
    [],
    {"a": 1},
    True,
    "None",
    "1,2",
    "()",
    "a=1",
    "\x00",
    "9" * 400,
    1e308,
    1e-308,
]


HOSTILE = {
    "overwrite": True,
    "output_dir": "C:\\Windows",
    "train_data_dir": "/etc",
    "extra_data_dirs": "\\\\evil\\share",
    "init_lora": "\\\\evil\\share\\x.safetensors",
    "logging_dir": "\\\\evil\\logs",
    "live": True,
    "output_name": "mine",
    "metadata_path": "/etc/passwd",
    "base_model": "\\\\evil\\m.safetensors",
    "reg_data_dir": "/root",
}
