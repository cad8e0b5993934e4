"""Files of other trainers as their programs write them, LoRAs by their header, and anything
broken.
"""

import contextlib
import json
import math
import time

import pytest
import safetensors.torch
import torch
import yaml
from safetensors.torch import save_file

from lora_trainer.base.errors import Refused
from lora_trainer.interop.readers import import_settings
from lora_trainer.settings.config import TrainConfig

try:
    import tomllib  # noqa: F401

    HAS_TOML = True
except ModuleNotFoundError:
    HAS_TOML = __import__("importlib.util").util.find_spec("tomli") is not None
needs_toml = pytest.mark.skipif(not HAS_TOML, reason="Python 3.10 without tomli")

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


def test_kohya_ss_page(tmp_path):
    found = imported(tmp_path, GUI)
    assert found.source == "kohya_ss settings"
    assert found.settings == {
        "base_model": "/models/a.safetensors",
        "lora_type": "lora",
        "lora_rank": 32,
        "lora_alpha": 16.0,
        "lora_targets": "attention+feed-forward",
        "rank_dropout": 0.1,
        "learning_rate": 2e-4,
        "train_text_encoder": True,
        "text_encoder_lr": 5e-5,
        "optimizer": "adamw8bit",
        "weight_decay": 0.2,
        "epochs": 12,
        "scheduler": "cosine_with_restarts",
        "scheduler_cycles": 12,
        "clip_skip": 2,
        "max_token_length": 150,
        "enable_bucket": True,
        "bucket_step": 64,
        "bucket_min": 256,
        "bucket_max": 2048,
        "bucket_no_upscale": True,
        "mirror": True,
        "caption_dropout_rate": 0.05,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "keep_tokens": 1,
        "max_timestep": 1000,
        "min_snr_gamma": 5.0,
        "mixed_precision": "bf16",
        "noise_offset": 0.05,
        "output_dir": "/loras",
        "output_name": "mine",
        "prior_loss_weight": 1.0,
        "save_every_n_epochs": 1,
        "save_precision": "fp16",
        "shuffle_caption": True,
        "batch_size": 3,
        "train_data_dir": "/pictures",
        "resolution": 512,
        "max_grad_norm": 0.5,
        "weighted_captions": True,
        "caption_extension": ".txt",
        "caption_lines": "first",
    }
    assert set(left(found)) == {
        "adaptive_noise_scale",
        "cache_latents",
        "guidance_scale",
        "learning_rate",
        "lr_warmup_steps",
        "multires_noise_discount",
        "multires_noise_iterations",
        "num_cpu_threads_per_process",
        "xformers",
    }
    assert (
        "10% of all steps" in left(found)["lr_warmup_steps"]
        and "Flux" in left(found)["guidance_scale"]
    )


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"LoRA_type": "Kohya LoCon", "conv_dim": 8, "conv_alpha": 4},
            dict(lora_type="lora", lora_targets="all", conv_rank=8, conv_alpha=4.0),
        ),
        (
            {"LoRA_type": "LyCORIS/LoCon", "conv_dim": 8, "conv_alpha": 4},
            dict(lora_type="lora", lora_targets="all", conv_rank=8),
        ),
        (
            {"LoRA_type": "LyCORIS/LoHa", "LyCORIS_preset": "attn-mlp"},
            dict(lora_type="loha", lora_targets="attention+feed-forward", lokr_factor=None),
        ),
        (
            {"LoRA_type": "LyCORIS/LoKr", "factor": 6},
            dict(lora_type="lokr", lora_targets="all", lokr_factor=6),
        ),
        ({"text_encoder_lr": 0}, dict(train_text_encoder=False, learning_rate=2e-4)),
        ({"unet_lr": 0}, dict(train_text_encoder=True, train_unet=False, text_encoder_lr=5e-5)),
        (
            {"unet_lr": 0, "text_encoder_lr": 0},
            dict(
                train_text_encoder=True, train_unet=None, learning_rate=1e-4, text_encoder_lr=1e-4
            ),
        ),
        ({"max_train_steps": 800}, dict(max_train_steps=800, epochs=None, lr_warmup_steps=80)),
        ({"max_train_epochs": 4, "max_train_steps": 800}, dict(max_train_steps=None, epochs=4)),
        (
            {"noise_offset_type": "Multires"},
            dict(noise_offset=None, multires_noise_iterations=8, multires_noise_discount=0.2),
        ),
        ({"sdxl": True, "clip_skip": 2}, dict(clip_skip=None)),
        ({"seed": "1234"}, dict(seed=1234)),
    ],
)
def test_kohya_ss_page_as_its_start_button_reads_it(tmp_path, changes, expected):
    found = imported(tmp_path, {**GUI, **changes}).settings
    assert {name: found.get(name) for name in expected} == expected


LORA_SCRIPTS = """
model_train_type = "sdxl-lora"
pretrained_model_name_or_path = "./sd-models/noob.safetensors"
train_data_dir = "./train/aki"
resolution = "1024,1024"
enable_bucket = true
min_bucket_reso = 256
max_bucket_reso = 2048
bucket_reso_steps = 32
output_name = "aki"
save_every_n_epochs = 2
max_train_epochs = 10
network_train_unet_only = true
unet_lr = "1e-4"
text_encoder_lr = "1e-5"
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 1
optimizer_type = "Prodigy"
prodigy_d_coef = "2.0"
optimizer_args_custom = ["weight_decay=0.01"]
network_module = "lycoris.kohya"
lycoris_algo = "lokr"
lokr_factor = 8
conv_dim = 4
conv_alpha = 1
dropout = 0.1
network_dim = 32
network_alpha = 32
positive_prompts = "1girl"
sample_width = 512
clip_skip = 2
max_token_length = 255
caption_extension = ".txt"
v_parameterization = true
lowram = false
"""


@needs_toml
def test_lora_scripts_toml(tmp_path):
    found = imported(tmp_path, LORA_SCRIPTS, "run.toml")
    assert found.source == "lora-scripts settings"
    expected = {
        "lora_type": "lokr",
        "lokr_factor": 8,
        "lora_rank": 32,
        "conv_rank": 4,
        "conv_alpha": 1.0,
        "lora_dropout": 0.1,
        "learning_rate": 1e-4,
        "optimizer": "prodigy",
        "optimizer_args": "d_coef=2.0",
        "weight_decay": 0.01,
        "scheduler_cycles": 1,
        "epochs": 10,
        "prediction_type": "v_prediction",
        "max_token_length": 255,
        "train_text_encoder": False,
        "resolution": 1024,
        "bucket_step": 32,
        "save_every_n_epochs": 2,
    }
    assert {
        name: found.settings.get(name) for name in expected
    } == expected and "text_encoder_lr" not in found.settings
    assert set(left(found)) == {
        "model_train_type",
        "positive_prompts",
        "sample_width",
        "clip_skip",
        "network_args dropout",
    }


def test_lora_scripts_yaml_is_in_our_names(tmp_path):
    values = {
        "task_type": "stable-diffusion",
        "train_data_dir": "data/x",
        "metadata_path": "data/x/metadata.csv",
        "base_model": "m.safetensors",
        "lora_rank": 8,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "epochs": 3,
        "max_train_steps": None,
        "resolution": 512,
        "learning_rate": 1e-4,
        "optimizer": "AdamW",
        "scheduler": "cosine",
        "output_dir": "out",
        "output_name": "x",
        "overwrite": False,
        "save_steps": 100,
        "logging_dir": "logs",
        "mixed_precision": "fp16",
        "gradient_checkpointing": False,
        "seed": 42,
        "wandb": "off",
        "network_alpha": 3,
    }
    found = imported(tmp_path, yaml.safe_dump(values), "run.yaml")
    expected = {
        key: value
        for key, value in values.items()
        if key not in ("wandb", "max_train_steps", "network_alpha")
    } | {"optimizer": "adamw"}
    assert (
        found.settings == expected
        and set(left(found)) == {"wandb", "network_alpha"}
        and found.source == "lora-scripts settings in our names"
        and not found.assumed
    )


def test_our_own_settings_come_back(tmp_path):
    config = TrainConfig.parse(
        {
            "output_name": "猫",
            "learning_rate": 3e-5,
            "mirror": True,
            "lora_blocks": "MID=64:32",
            "extra_data_dirs": "a\n5 x b",
        }
    )
    found = imported(tmp_path, config.to_yaml(), "run.yaml")
    assert TrainConfig.parse(found.settings) == config and not found.left_out


DATASETS = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = [512, 768]
batch_size = 4
enable_bucket = true

  [[datasets.subsets]]
  image_dir = "/pictures/hoge"
  num_repeats = 3
  class_tokens = "hoge girl"

  [[datasets.subsets]]
  image_dir = "/pictures/fuga"
  num_repeats = 5
  keep_tokens = 2

  [[datasets.subsets]]
  is_reg = true
  image_dir = "/reg"
  class_tokens = "human"
  keep_tokens = 0

[[datasets]]
resolution = 768

  [[datasets.subsets]]
  image_dir = "/pictures/piyo"
"""


@needs_toml
def test_kohyas_dataset_config(tmp_path):
    found = imported(tmp_path, DATASETS, "dataset.toml")
    assert found.source == "kohya's dataset config"
    assert found.settings == {
        "enable_bucket": True,
        "caption_extension": ".txt",
        "shuffle_caption": True,
        "keep_tokens": 1,
        "resolution": 627,
        "batch_size": 4,
        "train_data_dir": "/pictures/hoge",
        "repeats": 3,
        "extra_data_dirs": "5 x /pictures/fuga\n1 x /pictures/piyo",
        "reg_data_dir": "/reg",
    }
    assert [(item.key, item.value) for item in found.left_out] == [
        ("datasets[0] keep_tokens", 2),
        ("datasets[1] resolution", 768),
        ("class_tokens", "hoge girl"),
    ]


IN_TWO_SIZES = """
[[datasets]]
resolution = "512,512"
batch_size = 4
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "/pictures"
  num_repeats = 3

[[datasets]]
resolution = [1024, 768]
batch_size = 2
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "/pictures"
  num_repeats = 3
"""


@needs_toml
def test_data_sets_of_the_same_folders_are_one_in_several_resolutions(tmp_path):
    found = imported(tmp_path, IN_TWO_SIZES, "dataset.toml")
    assert found.settings == {
        "resolution": 512,
        "extra_resolutions": "887",
        "batch_size": 4,
        "enable_bucket": True,
        "train_data_dir": "/pictures",
        "repeats": 3,
    }
    assert [(item.key, item.value) for item in found.left_out] == [("datasets[1] batch_size", 2)]
    other = imported(
        tmp_path,
        IN_TWO_SIZES.replace(
            'image_dir = "/pictures"\n  num_repeats = 3\n\n',
            'image_dir = "/more"\n  num_repeats = 3\n\n',
        ),
        "other.toml",
    )
    assert "extra_resolutions" not in other.settings and "datasets[1] resolution" in left(other)


@pytest.mark.parametrize(
    "given, resolution, extra",
    [
        ("512, 768", 512, "768"),
        ([512, 768, 1024], 512, "768, 1024"),
        ("512x768", 627, ""),
        ("512,512", 512, ""),
        (640, 640, ""),
    ],
)
def test_several_resolutions_in_our_names_are_taken_over_together(
    tmp_path, given, resolution, extra
):
    found = imported(tmp_path, {"lora_rank": 8, "train_data_dir": "/pictures", "resolution": given})
    assert (found.settings["resolution"], found.settings.get("extra_resolutions", "")) == (
        resolution,
        extra,
    ) and not found.left_out


@needs_toml
def test_a_config_with_its_data_sets_in_it(tmp_path):
    found = imported(
        tmp_path,
        'network_dim = 8\nlearning_rate = 1e-4\ndataset_config = "d.toml"\n' + DATASETS,
        "run.toml",
    )
    assert (
        found.settings["lora_rank"] == 8
        and found.settings["train_data_dir"] == "/pictures/hoge"
        and "dataset_config" in left(found)
    )


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


def test_train_like_a_lora_of_kohyas(tmp_path):
    found = lora(
        tmp_path, KOHYAS_LORA, ("lora_unet_a.lora_down.weight", "lora_te_b.lora_down.weight")
    )
    assert found.source == "the metadata of a LoRA"
    assert found.settings == {
        "lora_type": "lora",
        "lora_rank": 32,
        "lora_alpha": 16.0,
        "lora_targets": "all",
        "conv_rank": 8,
        "conv_alpha": 4.0,
        "learning_rate": 1e-4,
        "train_text_encoder": True,
        "text_encoder_lr": 5e-5,
        "optimizer": "adamw8bit",
        "weight_decay": 0.1,
        "optimizer_args": "betas=0.9,0.99",
        "epochs": 10,
        "scheduler": "cosine",
        "lr_warmup_steps": 100,
        "clip_skip": 2,
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 1,
        "mixed_precision": "fp16",
        "max_token_length": 225,
        "seed": 42,
        "noise_offset": 0.0357,
        "max_grad_norm": 1.0,
        "prior_loss_weight": 1.0,
        "min_snr_gamma": 5.0,
        "debiased_estimation": True,
        "batch_size": 2,
        "resolution": 627,
        "shuffle_caption": True,
        "enable_bucket": True,
        "bucket_no_upscale": True,
        "bucket_min": 256,
        "bucket_max": 1024,
        "keep_tokens": 1,
        "loss_type": "l2",
        "caption_lines": "first",
        "repeats": 10,
        "min_timestep": 100,
        "max_timestep": 800,
    }
    assert {item.key: item.value for item in found.left_out} == {
        "cache_latents": True,
        "ss_output_name": "zib",
        "ss_sd_model_name": "animefull.ckpt",
    }


def test_a_lora_with_a_dataset_config_and_several_folders(tmp_path):
    sets = [
        {
            "is_dreambooth": True,
            "batch_size_per_device": 4,
            "resolution": [1024, 1024],
            "enable_bucket": True,
            "min_bucket_reso": 512,
            "max_bucket_reso": 2048,
            "tag_frequency": {},
            "subsets": [
                {
                    "img_count": 3,
                    "num_repeats": 5,
                    "shuffle_caption": True,
                    "keep_tokens": 2,
                    "keep_tokens_separator": "|||",
                    "flip_aug": False,
                    "caption_prefix": None,
                    "is_reg": False,
                    "image_dir": "a",
                    "class_tokens": None,
                }
            ],
        }
    ]
    metadata = {
        key: value
        for key, value in KOHYAS_LORA.items()
        if not key.startswith(
            (
                "ss_resolution",
                "ss_batch",
                "ss_keep",
                "ss_enable",
                "ss_min_b",
                "ss_max_b",
                "ss_shuffle",
            )
        )
    }
    found = lora(
        tmp_path,
        {
            **metadata,
            "ss_datasets": json.dumps(sets),
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_max_train_steps": "1600",
            "ss_dataset_dirs": json.dumps({"a": {"n_repeats": 5}, "b": {"n_repeats": 1}}),
        },
    )
    expected = {
        "resolution": 1024,
        "batch_size": 4,
        "bucket_min": 512,
        "keep_tokens": 2,
        "keep_tokens_separator": "|||",
        "shuffle_caption": True,
        "max_train_steps": 1600,
        "epochs": None,
        "train_text_encoder": False,
        "clip_skip": None,
        "repeats": None,
    }
    assert {name: found.settings.get(name) for name in expected} == expected
    assert {"ss_dataset_dirs", "clip_skip"} <= set(left(found))


def test_a_resized_lora_and_one_with_little_metadata(tmp_path):
    assert (
        lora(
            tmp_path,
            {
                "ss_network_module": "networks.lora",
                "ss_network_dim": "Dynamic",
                "ss_network_alpha": "8",
            },
            rank=6,
        ).settings["lora_rank"]
        == 6
    )
    found = lora(
        tmp_path,
        {
            "ss_network_module": "networks.lora",
            "ss_network_dim": "8",
            "ss_network_alpha": "4",
            "ss_v2": "False",
            "ss_base_model_version": "sd_v1",
        },
    )
    assert found.settings == {
        "lora_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 4.0,
        "lora_targets": "attention+feed-forward",
        "train_text_encoder": False,
    }


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"modelspec.title": "x"}])
def test_a_lora_that_says_nothing(tmp_path, metadata):
    with pytest.raises(Refused, match="does not say how it was trained") as caught:
        lora(tmp_path, metadata)
    assert caught.value.code == "no_settings"


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.safetensors", b""),
        ("x.safetensors", b"12345678"),
        ("x.safetensors", (20).to_bytes(8, "little") + b'{"a": '),
        ("x.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("x.safetensors", (10).to_bytes(8, "little") + b'{"a":  1 }'),
        ("x.json", b'{"a": '),
        ("x.json", b"[1, 2]"),
        ("x.json", b"\xff\xfe\x00"),
        ("x.yaml", b"a: ["),
        ("x.json", b"[" * 100_000),
        ("x.yaml", b"just words"),
        ("missing.json", None),
        ("x.safetensors", None),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused) as caught:
        import_settings(tmp_path / name)
    assert caught.value.code == "unreadable_config"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"foo": 1},
        {"network_dim": -5},
        {"training_method": "LORA", "model_type": "FLUX_DEV_1", "lora_rank": 16},
    ],
)
def test_files_without_settings_are_refused(tmp_path, values):
    with pytest.raises(Refused) as caught:
        imported(tmp_path, values)
    assert caught.value.code == "no_settings"


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


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:9])
def test_whatever_a_value_is_the_rest_is_taken_over(tmp_path, odd):
    for key in [*GUI, "save_n_epoch_ratio", "save_last_n_steps", "save_every_n_steps"]:
        found = imported(
            tmp_path, {**GUI, "save_last_n_steps": 10, "save_every_n_steps": 10, key: odd}
        )
        assert len(found.settings) >= len(GUI) // 3, key


@pytest.mark.parametrize(
    "odd",
    ["abc", "-1", "[", "{}", "[1]", '{"a": 1}', "inf", "((((", "f(", "9" * 400],
    ids=lambda odd: odd[:9],
)
def test_whatever_a_lora_says_the_rest_is_taken_over(tmp_path, odd):
    for key in (
        "ss_datasets",
        "ss_network_args",
        "ss_optimizer",
        "ss_resolution",
        "ss_num_epochs",
        "ss_network_dim",
        "ss_dataset_dirs",
        "ss_lr_warmup_steps",
        "ss_num_reg_images",
        "ss_unet_lr",
        "ss_reg_dataset_dirs",
        "train_lora_settings",
        "ss_gradient_accumulation_steps",
        "ss_num_batches_per_epoch",
        "ss_max_train_steps",
    ):
        found = lora(tmp_path, {**KOHYAS_LORA, key: odd})
        assert found.settings["lora_alpha"] == 16.0 or key == "train_lora_settings", key


def test_a_json_beyond_what_is_read_is_refused(tmp_path):
    (tmp_path / "large.json").write_text(f'["{"a" * 6_000_000}"]')
    with pytest.raises(Refused, match="larger than 5,000 kB") as caught:
        import_settings(tmp_path / "large.json")
    assert caught.value.code == "unreadable_config"


# --- Files from strangers -------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    "metadata",
    [
        {"train_lora_settings": json.dumps({**HOSTILE, "lora_rank": 8})},
        {
            "ss_learning_rate": "1e-4",
            "ss_network_dim": "8",
            **{f"ss_{name}": str(value) for name, value in HOSTILE.items()},
        },
    ],
)
def test_a_lora_names_no_places_and_replaces_nothing(tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        safetensors.torch.save({"lora_unet_a.lora_down.weight": torch.zeros(8, 4)}, metadata)
    )
    found = import_settings(path)
    assert not HOSTILE.keys() & found.settings.keys() and found.settings["lora_rank"] == 8
    assert {"overwrite", "init_lora"} <= {left.key.removeprefix("ss_") for left in found.left_out}


@pytest.mark.parametrize(
    "ending, text",
    [("yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nlearning_rate: *b\n"), ("json", "[" * 100_000)],
)
def test_files_that_grow_without_end_are_refused(tmp_path, ending, text):
    path = tmp_path / f"x.{ending}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match="cannot be read"):
        import_settings(path)


DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    "key",
    [
        "ss_datasets",
        "ss_network_args",
        "ss_dataset_dirs",
        "ss_reg_dataset_dirs",
        "train_lora_settings",
        "ss_optimizer",
        "ss_network_dropout",
        "ss_resolution",
    ],
)
def test_what_is_nested_too_deep_in_a_lora_is_left_out(tmp_path, key):
    found = lora(
        tmp_path,
        {
            **KOHYAS_LORA,
            key: DEEP if key != "ss_network_args" else f'{{"conv_dim": {DEEP}}}',
            "ss_num_reg_images": "3",
        },
    )
    assert found.settings["lora_rank"] == 32 and all(
        len(str(item.value)) <= len(DEEP) for item in found.left_out
    )


def test_a_lora_says_what_was_not_taken_over_in_its_own_order(tmp_path):
    found = lora(tmp_path, {"train_lora_settings": json.dumps({**HOSTILE, "lora_rank": 8})})
    assert [item.key for item in found.left_out if "places" in item.reason] == list(HOSTILE)
    assert found.settings == {"lora_rank": 8}


def test_files_of_ones_own_may_name_places(tmp_path):
    found = imported(tmp_path, {**HOSTILE, "lora_rank": 8})
    assert found.settings == {**HOSTILE, "lora_rank": 8}


def test_nonsense_that_python_cannot_parse_is_only_left_out(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps({"network_dim": 8, "optimizer_args": ["eps=" + "-" * 100_000 + "1"]}),
        encoding="utf-8",
    )
    assert import_settings(path).settings["lora_rank"] == 8
    lora = tmp_path / "x.safetensors"
    lora.write_bytes(
        safetensors.torch.save(
            {"lora_unet_a.lora_down.weight": torch.zeros(8, 4)},
            {
                "ss_learning_rate": "1e-4",
                "ss_optimizer": f"torch.optim.AdamW(eps={'-' * 100_000}1)",
            },
        )
    )
    assert import_settings(lora).settings["optimizer"] == "adamw"


def test_a_file_of_bad_values_only_says_what_is_wrong_with_the_first(tmp_path):
    (tmp_path / "bad.yaml").write_text("learning_rate: abc\nlora_rank: 0\n", encoding="utf-8")
    with pytest.raises(Refused, match="no settings that can be used.*learning_rate.*not a number"):
        import_settings(tmp_path / "bad.yaml")
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(Refused, match="no text in UTF-8"):
        import_settings(tmp_path / "picture.toml")


@pytest.mark.parametrize(
    "metadata, said",
    [
        ({f"ss_{number}": "1" for number in range(1001)}, "1,003 notes"),
        ({"ss_optimizer": "a." * 2_000_000 + "("}, ""),
        ({"ss_network_args": "a '" * 1_000_000}, ""),
        ({"ss_datasets": "[" + "[]," * 240_000 + "[]]"}, ""),
        ({"ss_datasets": "[" + "[]," * 260_000 + "[]]"}, "lists and mappings"),
        ({"ss_network_args": json.dumps({"block_dims": "1," * 900_000})}, ""),
    ],
    ids=range(6),
)
def test_what_would_take_long_to_understand_is_passed_over_or_refused(tmp_path, metadata, said):
    """Each took 1 to 19 seconds."""
    metadata = {"ss_network_dim": "4", "ss_learning_rate": "1e-4", **metadata}
    began = time.process_time()
    if said:
        with pytest.raises(Refused, match=said):
            lora(tmp_path, metadata)
    else:
        assert lora(tmp_path, metadata).settings["lora_rank"] == 4
    assert time.process_time() - began < 2


# --- What takes long ------------------------------------------------------------------------------

DOTTED = ".".join("a" * 20_000)
SLOW = {  # each took from one second to a minute
    "keys.yaml": "\n".join(f"key_{number}: 1" for number in range(20_000)),
    "keys.json": json.dumps({f"key_{number}": 1 for number in range(20_000)}),
    "list.yaml": "{a," + "a," * 60_000 + "}",
    "deep.yaml": "[" * 100_000,
    "number.yaml": "a: 1" + ":1" * 50_000,
    "number.json": f'{{"a": {"1" * 900_000}}}',
    "dotted.toml": f"{DOTTED} = 1",
    "quoted.toml": DOTTED.replace("a", '"a"') + " = 1",
    "inline.toml": f"x = {{{DOTTED} = 1}}",
    "section.toml": f"[{DOTTED}]",
    "subsets.json": json.dumps(
        {
            "general": {f"key_{number}": 1 for number in range(5_000)},
            "datasets": [{"subsets": [{}] * 40_000}],
        }
    ),
    "arguments.json": json.dumps(
        {
            "network_module": "networks.lora",
            "network_args": {f"key_{number}": 1 for number in range(80_000)},
        }
    ),
    "command.json": json.dumps(
        {
            "LoRA_type": "Standard",
            "additional_parameters": "".join(f"--a{number} " for number in range(100_000)),
        }
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_no_file_takes_long(tmp_path, name):
    (tmp_path / name).write_text(SLOW[name], encoding="utf-8")
    began = time.process_time()
    try:
        found = import_settings(tmp_path / name)
    except Refused as error:
        assert error.code in ("unreadable_config", "no_settings") and len(
            error.message
        ) < 400 + len(str(tmp_path))
    else:
        assert name == "command.json" and "additional_parameters" in left(found)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "metadata",
    [
        {f"ss_network_{number}": "1" for number in range(100_000)},
        {"ss_network_dim": "4", "ss_datasets": json.dumps([{"resolution": 512}] * 200_000)},
        {
            "ss_network_dim": "4",
            "ss_network_args": json.dumps({f"key_{number}": 1 for number in range(200_000)}),
        },
    ],
)
def test_no_lora_takes_long(tmp_path, metadata):
    header = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    began = time.process_time()
    with contextlib.suppress(Refused):
        import_settings(tmp_path / "x.safetensors")
    assert time.process_time() - began < 1.5
