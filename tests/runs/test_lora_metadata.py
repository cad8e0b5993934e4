"""What a LoRA says of itself, against what kohya's train_network.py writes for the same settings,
key by key.
"""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lora_trainer.interop.kohya_names import OUR_SETTINGS_KEY
from lora_trainer.interop.readers import import_settings
from lora_trainer.lora import save
from lora_trainer.lora.adapter_layers import AdapterSpec, RankAlpha
from lora_trainer.lora.blocks import read_block_rates
from lora_trainer.runs import lora_metadata, plan
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.plan import make_plan
from lora_trainer.settings.config import TrainConfig, settings_kept_in_lora

KOHYA = """
[model_arguments]
pretrained_model_name_or_path = "{folder}/animefull.safetensors"
v2 = false
v_parameterization = false

[dataset_arguments]
train_data_dir = "{folder}/train"
reg_data_dir = "{folder}/reg"
prior_loss_weight = 0.8
resolution = "512,512"
enable_bucket = true
min_bucket_reso = 320
max_bucket_reso = 960
bucket_reso_steps = 64
bucket_no_upscale = false
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"
caption_dropout_rate = 0.05
caption_tag_dropout_rate = 0.1
flip_aug = true
random_crop = false
color_aug = false
cache_latents = true

[additional_network_arguments]
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_dropout = 0.1
network_args = ["conv_dim=8", "conv_alpha=4", "rank_dropout=0.1", "module_dropout=0.05"]
scale_weight_norms = 1.0
network_train_unet_only = false

[optimizer_arguments]
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=(0.9, 0.99)"]
learning_rate = 1e-4
unet_lr = 1e-4
text_encoder_lr = 5e-5
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 2
lr_warmup_steps = 20
max_grad_norm = 0.5

[training_arguments]
output_dir = "{folder}/out"
output_name = "zib"
save_model_as = "safetensors"
save_precision = "fp16"
save_every_n_epochs = 1
train_batch_size = 2
max_train_epochs = 4
gradient_accumulation_steps = 2
gradient_checkpointing = true
mixed_precision = "fp16"
seed = 1337
clip_skip = 2
max_token_length = 150
xformers = true
max_timestep = 900

[noise_arguments]
noise_offset = 0.05
noise_offset_random_strength = true
multires_noise_iterations = 6
multires_noise_discount = 0.4
ip_noise_gamma = 0.05
min_snr_gamma = 5
debiased_estimation_loss = false
loss_type = "huber"
huber_schedule = "snr"
huber_c = 0.15
"""

# By hand from sd-scripts' train_network.py (Feb 2026) for KOHYA and the pictures of `folder`: 3 in
# 10_zib cat (two of 512x512, one of 384x640), 4 of 512x512 in 1_cat. 30 pictures with repeats; the
# others are shown as often: 60. Batches of 2: (20 + 30) / 2 of squares and 10 / 2: 30, which is 15
# steps.
WRITTEN_BY_KOHYA = {
    "ss_output_name": "zib",
    "ss_learning_rate": "0.0001",
    "ss_text_encoder_lr": "5e-05",
    "ss_unet_lr": "0.0001",
    "ss_num_train_images": "30",
    "ss_num_validation_images": "0",
    "ss_num_reg_images": "4",
    "ss_num_batches_per_epoch": "30",
    "ss_num_epochs": "4",
    "ss_gradient_checkpointing": "True",
    "ss_gradient_accumulation_steps": "2",
    "ss_max_train_steps": "60",
    "ss_lr_warmup_steps": "20",
    "ss_lr_scheduler": "cosine_with_restarts",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "32",
    "ss_network_alpha": "16",
    "ss_network_dropout": "0.1",
    "ss_mixed_precision": "fp16",
    "ss_full_fp16": "False",
    "ss_v2": "False",
    "ss_base_model_version": "sd_v1",
    "ss_clip_skip": "2",
    "ss_max_token_length": "150",
    "ss_cache_latents": "True",
    "ss_seed": "1337",
    "ss_lowram": "False",
    "ss_noise_offset": "0.05",
    "ss_multires_noise_iterations": "6",
    "ss_multires_noise_discount": "0.4",
    "ss_adaptive_noise_scale": "None",
    "ss_zero_terminal_snr": "False",
    "ss_training_comment": "None",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
    "ss_max_grad_norm": "0.5",
    "ss_caption_dropout_rate": "0.05",
    "ss_caption_dropout_every_n_epochs": "0",
    "ss_caption_tag_dropout_rate": "0.1",
    "ss_face_crop_aug_range": "None",
    "ss_prior_loss_weight": "0.8",
    "ss_min_snr_gamma": "5",
    "ss_scale_weight_norms": "1.0",
    "ss_ip_noise_gamma": "0.05",
    "ss_debiased_estimation": "False",
    "ss_noise_offset_random_strength": "True",
    "ss_ip_noise_gamma_random_strength": "False",
    "ss_loss_type": "huber",
    "ss_huber_schedule": "snr",
    "ss_huber_scale": "1.0",
    "ss_huber_c": "0.15",
    "ss_fp8_base": "False",
    "ss_fp8_base_unet": "False",
    "ss_validation_seed": "None",
    "ss_validation_split": "0.0",
    "ss_max_validation_steps": "None",
    "ss_validate_every_n_epochs": "None",
    "ss_validate_every_n_steps": "None",
    "ss_resize_interpolation": "None",
    "ss_batch_size_per_device": "2",
    "ss_total_batch_size": "4",
    "ss_resolution": "(512, 512)",
    "ss_color_aug": "False",
    "ss_flip_aug": "True",
    "ss_random_crop": "False",
    "ss_shuffle_caption": "True",
    "ss_enable_bucket": "True",
    "ss_bucket_no_upscale": "False",
    "ss_min_bucket_reso": "320",
    "ss_max_bucket_reso": "960",
    "ss_keep_tokens": "1",
    "ss_dataset_dirs": {"10_zib cat": {"n_repeats": 10, "img_count": 3}},
    "ss_reg_dataset_dirs": {"1_cat": {"n_repeats": 1, "img_count": 4}},
    "ss_tag_frequency": {"10_zib cat": {"zib": 3, "cat": 3, "red": 1}, "1_cat": {"cat": 4}},
    "ss_bucket_info": {
        "buckets": {
            "0": {"resolution": [384, 640], "count": 10},
            "1": {"resolution": [512, 512], "count": 50},
        },
        "mean_img_ar_error": 0.0,
    },
    "ss_network_args": {
        "conv_dim": "8",
        "conv_alpha": "4",
        "rank_dropout": "0.1",
        "module_dropout": "0.05",
        "dropout": 0.1,
    },
    "ss_sd_model_name": "animefull.safetensors",
    "ss_sd_model_hash": "(old hash)",
    "ss_new_sd_model_hash": "ab" * 32,
    "ss_sd_scripts_commit_hash": "(commit)",
    "ss_steps": "60",
    "ss_epoch": "4",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.implementation": "diffusers",
    "modelspec.implementation_version": "(commit)",
    "modelspec.title": "zib",
    "modelspec.resolution": "512x512",
    "modelspec.prediction_type": "epsilon",
    "modelspec.timestep_range": "0,900",
    "modelspec.encoder_layer": "2",
}
OF_THE_MOMENT = {
    "ss_session_id",
    "ss_training_started_at",
    "ss_training_finished_at",
    "modelspec.date",
}  # both write them
DIFFERENT = {  # key: why ours is not kohya's
    "ss_sd_model_name": "hosts name a checkpoint without its ending",
    "ss_sd_model_hash": (
        "kohya's old hash of 64 KiB tells nothing that the whole file's, which we write, does not"
    ),
    "ss_sd_scripts_commit_hash": "we are not sd-scripts",
    "modelspec.implementation_version": "we are not sd-scripts",
    "ss_num_reg_images": (
        "kohya counts them before they are balanced against the others, we after: as they are shown"
    ),
    "ss_reg_dataset_dirs": "as ss_num_reg_images",
}
OURS_ALONE = {OUR_SETTINGS_KEY, "ss_loss_average"}


@pytest.fixture
def folder(tmp_path):
    for place, words, sizes in (
        ("train/10_zib cat", "zib, cat", [(512, 512), (512, 512), (384, 640)]),
        ("reg/1_cat", "cat", [(512, 512)] * 4),
    ):
        (tmp_path / place).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("RGB", size, (number * 40, 90, 30)).save(tmp_path / place / f"{number}.png")
            (tmp_path / place / f"{number}.txt").write_text(
                words + (", red" if number == 0 and "zib" in words else "")
            )
    (tmp_path / "run.toml").write_text(KOHYA.replace("{folder}", tmp_path.as_posix()))
    return tmp_path


@pytest.fixture(autouse=True)
def any_optimizer(monkeypatch):
    """What is written does not depend on which packages are there."""
    monkeypatch.setattr(plan, "check_without_step", lambda name, arguments: None)


def base_model(**changes):
    return SimpleNamespace(
        **{
            **dict(
                family="sd1",
                prediction_type="epsilon",
                name="animefull",
                sha256="ab" * 32,
                clip_skip=2,
                zero_terminal_snr=False,
            ),
            **changes,
        }
    )


def adapter_spec(config):
    return AdapterSpec(
        kind=config.lora_type,
        rslora=config.rslora,
        use_dora=config.use_dora,
        lokr_factor=config.lokr_factor,
        dropout=config.lora_dropout,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
    )


def written(config, folder, model=None, shapes=None):
    made = make_plan(config, lora_dir=folder / "out")
    parts = [
        part
        for part, learns in (("unet.a", config.train_unet), ("te1.b", config.train_text_encoder))
        if learns
    ]
    return lora_metadata.metadata(
        config,
        model or base_model(),
        shapes or dict.fromkeys(parts, RankAlpha(config.lora_rank, config.lora_alpha)),
        adapter_spec(config),
        made.samples,
        lora_metadata.RunFigures(
            steps=made.schedule.total_steps,
            total_steps=made.schedule.total_steps,
            steps_per_epoch=made.schedule.steps_per_epoch,
            started_at=1.5,
            loss_average=0.1,
        ),
    )


def same(ours, theirs):
    """Compare as kohya's readers do: JSON as JSON, numbers as numbers, None and words as text."""
    if isinstance(theirs, (dict, list)):
        return ours is not None and json.loads(ours) == theirs
    try:
        return float(ours) == float(theirs)
    except (TypeError, ValueError):
        return ours == theirs


needs_toml = pytest.mark.skipif(
    sys.version_info < (3, 11) and not pytest.importorskip("tomli"), reason="no reader of TOML"
)


@needs_toml
def test_a_kohya_config_of_forty_keys_gives_the_metadata_that_kohya_would_write(folder):
    keys = [line for line in KOHYA.splitlines() if " = " in line]
    assert len(keys) >= 40
    imported = import_settings(folder / "run.toml")
    ours = written(TrainConfig.parse(imported.settings), folder)
    assert (
        set(ours) - set(WRITTEN_BY_KOHYA) - OF_THE_MOMENT == OURS_ALONE
        and set(ours) >= OF_THE_MOMENT
    )
    differ = {key for key, theirs in WRITTEN_BY_KOHYA.items() if not same(ours.get(key), theirs)}
    assert differ == set(DIFFERENT), {
        key: (ours.get(key), WRITTEN_BY_KOHYA[key]) for key in differ ^ set(DIFFERENT)
    }
    assert {item.key for item in imported.left_out} == {
        "cache_latents",
        "save_model_as",
        "xformers",
        "network_dropout",
    }


EVERYTHING = {  # every setting of training at a value that is not its default
    "trigger_word": "zib",
    "preferred_weight": 0.7,
    "negative_text": "blurry",
    "resolution": 640,
    "extra_resolutions": "768",
    "epochs": 3,
    "max_train_steps": 24,
    "batch_size": 2,
    "learning_rate": 3e-4,
    "lora_rank": 8,
    "lora_alpha": 4.0,
    "repeats": 2,
    "enable_bucket": True,
    "bucket_step": 32,
    "bucket_min": 256,
    "bucket_max": 1024,
    "bucket_no_upscale": True,
    "mirror": True,
    "random_crop": True,
    "color_jitter": 0.1,
    "prior_loss_weight": 0.5,
    "validation_split": 0.34,
    "validate_every": 5,
    "shuffle_caption": True,
    "keep_tokens": 1,
    "keep_tokens_separator": "|||",
    "caption_dropout_rate": 0.1,
    "caption_tag_dropout_rate": 0.2,
    "trigger_only_rate": 0.1,
    "max_token_length": 150,
    "weighted_captions": True,
    "lora_targets": "all",
    "attention_rank": 4,
    "attention_alpha": 2.0,
    "feed_forward_rank": 6,
    "feed_forward_alpha": 3.0,
    "conv_rank": 4,
    "conv_alpha": 1.0,
    "lora_blocks": "IN04-IN08=16:8, MID",
    "block_learning_rates": "IN04=0.5",
    "rslora": True,
    "use_dora": True,
    "lora_dropout": 0.1,
    "rank_dropout": 0.2,
    "module_dropout": 0.3,
    "scale_weight_norms": 1.0,
    "train_text_encoder": True,
    "text_encoder_lr": 3e-4,
    "text_encoder_rank": 4,
    "text_encoder_alpha": 2.0,
    "clip_skip": 2,
    "optimizer": "adafactor",
    "optimizer_args": "beta1=0.9 clip_threshold=2.0",
    "loraplus_lr_ratio": 16.0,
    "loraplus_text_encoder_lr_ratio": 4.0,
    "weight_decay": 0.02,
    "max_grad_norm": 0.0,
    "scheduler": "polynomial",
    "lr_warmup_steps": 5,
    "scheduler_cycles": 2,
    "scheduler_power": 1.5,
    "ema_decay": 0.99,
    "gradient_accumulation_steps": 2,
    "seed": 7,
    "prediction_type": "v_prediction",
    "zero_terminal_snr": "on",
    "loss_type": "smooth_l1",
    "huber_c": 0.2,
    "huber_schedule": "exponential",
    "min_snr_gamma": 5.0,
    "scale_v_pred_loss": True,
    "noise_offset": 0.05,
    "noise_offset_random": True,
    "multires_noise_iterations": 6,
    "multires_noise_discount": 0.4,
    "input_perturbation": 0.1,
    "input_perturbation_random": True,
    "min_timestep": 10,
    "max_timestep": 900,
    "timestep_sampling": "logit_normal",
    "logit_mean": 0.5,
    "logit_std": 0.8,
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "save_precision": "bf16",
    "caption_extension": ".caption",
    "caption_lines": "alternatives",
    "caption_wildcards": True,
}


def lora_file(folder, config, *, model=None, without=(), name="zib.safetensors", extra=()):
    """A file as a run writes it, with the text encoder's layers where they learned."""
    parts = ["lora_unet_a"] + (["lora_te_b"] if config.train_text_encoder else []) + list(extra)
    weights = {
        part: {
            "lora_down.weight": torch.ones(config.lora_rank, 4),
            "lora_up.weight": torch.ones(4, config.lora_rank),
        }
        for part in parts
    }
    values = {
        key: value for key, value in written(config, folder, model).items() if key not in without
    }
    save.save(
        folder / name,
        save.to_tensors(weights, alphas=dict.fromkeys(parts, config.lora_alpha), export_name=str),
        values,
    )
    return folder / name


def test_train_like_this_one_gives_back_every_setting_of_our_own_lora(folder):
    config = TrainConfig.parse(
        {
            **EVERYTHING,
            "train_data_dir": str(folder / "train"),
            "reg_data_dir": str(folder / "reg"),
            "output_name": "zib",
        }
    )
    held = settings_kept_in_lora(config)
    untouched = {name for name in held if held[name] == getattr(TrainConfig(), name)}
    assert untouched == {
        "lora_type",
        "lokr_factor",
        "train_unet",
        "debiased_estimation",
        "v_pred_like_loss",
        "masked_loss",
        "masked_loss_floor",
        "enable_bucket",
    }
    imported = import_settings(lora_file(folder, config))
    assert imported.settings == held and imported.source == "a LoRA of ours"
    assert {item.key: item.value for item in imported.left_out} == {
        "ss_output_name": "zib",
        "ss_sd_model_name": "animefull",
        "ss_reg_dataset_dirs": json.loads(written(config, folder)["ss_reg_dataset_dirs"]),
    }


# What kohya's keys have no word for; all else comes back from them alone. `epochs` do not count
# where steps are given; `repeats` are of the folder, 10_zib cat.
ONLY_IN_OURS = {
    "preferred_weight",
    "negative_text",
    "extra_resolutions",
    "trigger_only_rate",
    "keep_tokens_separator",
    "weighted_captions",
    "attention_rank",
    "attention_alpha",
    "feed_forward_rank",
    "feed_forward_alpha",
    "text_encoder_rank",
    "text_encoder_alpha",
    "scheduler_cycles",
    "scheduler_power",
    "ema_decay",
    "scale_v_pred_loss",
    "timestep_sampling",
    "logit_mean",
    "logit_std",
    "color_jitter",
    "repeats",
    "epochs",
    "bucket_step",
    "save_precision",
    "caption_extension",
    "caption_lines",
    "caption_wildcards",
}


def test_train_like_this_one_from_the_keys_that_other_trainers_write_too(folder):
    config = TrainConfig.parse(
        {
            **EVERYTHING,
            "train_data_dir": str(folder / "train"),
            "output_name": "zib",
            "reg_data_dir": str(folder / "reg"),
        }
    )
    model = base_model(prediction_type="v_prediction", zero_terminal_snr=True)
    settings = import_settings(
        lora_file(folder, config, model=model, without={OUR_SETTINGS_KEY})
    ).settings
    differ = {
        name
        for name, value in settings_kept_in_lora(config).items()
        if settings.get(name, getattr(TrainConfig(), name)) != value
    }
    assert differ == ONLY_IN_OURS and settings["repeats"] == 10


def test_the_names_of_layers_tell_what_was_trained(folder):
    config = TrainConfig.parse(
        {"train_data_dir": str(folder / "train"), "output_name": "zib", "lora_rank": 8}
    )
    assert (
        import_settings(lora_file(folder, config, without={OUR_SETTINGS_KEY})).settings[
            "train_text_encoder"
        ]
        is False
    )
    assert (
        import_settings(
            lora_file(folder, config, without={OUR_SETTINGS_KEY}, extra=["lora_te1_c"])
        ).settings["train_text_encoder"]
        is True
    )


@pytest.mark.parametrize(
    "model, expected",
    [
        ({}, ("sd_v1", "False", "stable-diffusion-v1/lora", "epsilon", "diffusers")),
        (
            dict(family="sd2"),
            ("sd_v2", "True", "stable-diffusion-v2-512/lora", "epsilon", "diffusers"),
        ),
        (
            dict(family="sd2", prediction_type="v_prediction"),
            ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "v", "diffusers"),
        ),
        (
            dict(family="sdxl"),
            (
                "sdxl_base_v1-0",
                "False",
                "stable-diffusion-xl-v1-base/lora",
                "epsilon",
                "https://github.com/Stability-AI/generative-models",
            ),
        ),
        (
            dict(family="sdxl", prediction_type="v_prediction", zero_terminal_snr=True),
            (
                "sdxl_base_v1-0",
                "False",
                "stable-diffusion-xl-v1-base/lora",
                "v",
                "https://github.com/Stability-AI/generative-models",
            ),
        ),
    ],
)
def test_each_family_as_kohya_calls_it(folder, model, expected):
    config = TrainConfig.parse({"train_data_dir": str(folder / "train"), "output_name": "zib"})
    found = written(config, folder, base_model(**model))
    assert (
        found["ss_base_model_version"],
        found["ss_v2"],
        found["modelspec.architecture"],
        found["modelspec.prediction_type"],
        found["modelspec.implementation"],
    ) == expected
    assert found["ss_zero_terminal_snr"] == str(bool(model.get("zero_terminal_snr"))) and found[
        "ss_clip_skip"
    ] == ("None" if model.get("family") == "sdxl" else "2")
    settings = import_settings(
        lora_file(folder, config, model=base_model(**model), without={OUR_SETTINGS_KEY})
    ).settings
    assert settings.get("prediction_type", "epsilon") == base_model(**model).prediction_type
    assert settings.get("clip_skip") == (None if model.get("family") == "sdxl" else 2)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_kinds_of_layers_are_lycoris_to_kohya(folder, kind):
    config = TrainConfig.parse(
        {
            "train_data_dir": str(folder / "train"),
            "output_name": "zib",
            "lora_type": kind,
            "lokr_factor": 4,
            "rank_dropout": 0.1,
        }
    )
    found = written(config, folder)
    arguments = {
        "algo": kind,
        "preset": "attn-mlp",
        **({"factor": "4"} if kind == "lokr" else {}),
        "rank_dropout": "0.1",
        "dropout": None,
    }
    assert (
        found["ss_network_module"] == "lycoris.kohya"
        and json.loads(found["ss_network_args"]) == arguments
    )
    settings = import_settings(lora_file(folder, config, without={OUR_SETTINGS_KEY})).settings
    assert (settings["lora_type"], settings["lora_targets"], settings["rank_dropout"]) == (
        kind,
        "attention+feed-forward",
        0.1,
    )
    assert settings.get("lokr_factor") == (4 if kind == "lokr" else None)


def test_metadata_names_no_folder_of_this_machine(folder):
    config = TrainConfig.parse(
        {
            "train_data_dir": str(folder / "train"),
            "output_name": "zib",
            "output_dir": str(folder / "out"),
            "reg_data_dir": str(folder / "reg"),
            "logging_dir": str(folder / "logs"),
            "base_model": str(folder / "m.safetensors"),
        }
    )
    assert str(folder) not in "".join(written(config, folder).values())


def test_rank_and_alpha_of_most_layers_where_none_has_the_settings(folder):
    config = TrainConfig.parse({"train_data_dir": str(folder / "train"), "output_name": "zib"})
    found = written(
        config,
        folder,
        shapes={
            "unet.a": RankAlpha(4, 2.0),
            "unet.b": RankAlpha(4, 2.0),
            "unet.c": RankAlpha(8, 8.0),
        },
    )
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "2")


@pytest.mark.parametrize(
    "shapes, unet, text",
    [
        ({"unet.a": RankAlpha(4, 4.0), "te1.b": RankAlpha(4, 4.0)}, "0.0001", "5e-05"),
        ({"te1.b": RankAlpha(4, 4.0)}, "None", "5e-05"),
        ({"unet.a": RankAlpha(4, 4.0)}, "0.0001", "None"),
    ],
)
@pytest.mark.parametrize(
    "switches", [dict(train_unet=False, train_text_encoder=True), dict(train_text_encoder=False)]
)
def test_learning_rates_are_of_the_layers_that_learn(folder, shapes, unet, text, switches):
    """A LoRA that was gone on from decides it, not the switches."""
    config = TrainConfig.parse(
        {"train_data_dir": str(folder / "train"), "output_name": "zib", **switches}
    )
    found = written(config, folder, shapes=shapes)
    assert (found["ss_unet_lr"], found["ss_text_encoder_lr"]) == (unet, text)


def test_ranks_without_an_alpha_are_written_with_the_one_that_was_used(folder):
    config = TrainConfig.parse(
        {
            "train_data_dir": str(folder / "train"),
            "output_name": "zib",
            "lora_rank": 8,
            "lora_alpha": 4,
            "lora_targets": "all",
            "conv_rank": 2,
            "lora_blocks": "IN04=16, IN05=16:1, MID",
        }
    )
    said = json.loads(written(config, folder)["ss_network_args"])
    assert (said["conv_dim"], said["conv_alpha"]) == ("2", "1")
    assert {
        dim: alpha
        for dim, alpha in zip(said["block_dims"].split(","), said["block_alphas"].split(","))
        if dim != "0"
    } == {"16": "1", "8": "4"}
    assert said["block_alphas"].split(",")[4:6] == ["8", "1"]


@pytest.mark.parametrize(
    "family, text, expected",
    [
        (
            "sd1",
            "IN04-IN05=0.5, MID=2",
            {
                "down_lr_weight": "1,1,1,1,0.5,0.5,1,1,1,1,1,1",
                "mid_lr_weight": "2",
                "up_lr_weight": ",".join("1" * 12),
            },
        ),
        (
            "sdxl",
            "MID=0.25, OUT08=0",
            {
                "down_lr_weight": ",".join("1" * 9),
                "mid_lr_weight": "0.25,0.25,0.25",
                "up_lr_weight": "1,1,1,1,1,1,1,1,0",
            },
        ),
        ("sd1", "", {}),
    ],
)
def test_dora_ratios_and_rates_of_blocks_as_sd_scripts_names_them(folder, family, text, expected):
    config = TrainConfig.parse(
        {
            "train_data_dir": str(folder / "train"),
            "output_name": "zib",
            "use_dora": True,
            "loraplus_lr_ratio": 16,
            "loraplus_text_encoder_lr_ratio": 4,
            "block_learning_rates": text,
        }
    )
    found = written(config, folder, model=base_model(family=family))
    said = json.loads(found["ss_network_args"])
    assert found["ss_network_module"] == "lycoris.kohya" and (
        said["algo"],
        said["dora_wd"],
        said["wd_on_output"],
    ) == ("locon", "True", "False")
    assert (said["loraplus_unet_lr_ratio"], said["loraplus_text_encoder_lr_ratio"]) == ("16", "4")
    assert {name: value for name, value in said.items() if name.endswith("_lr_weight")} == expected
    path = folder / "theirs.safetensors"
    save.save(
        path,
        {"lora_unet_a.lora_down.weight": torch.ones(2, 4)},
        {name: value for name, value in found.items() if name != OUR_SETTINGS_KEY},
    )
    imported = import_settings(path).settings
    assert (
        imported["use_dora"],
        imported["loraplus_lr_ratio"],
        imported["loraplus_text_encoder_lr_ratio"],
    ) == (True, 16, 4)
    levels = 3 if family == "sdxl" else 4
    assert read_block_rates(imported.get("block_learning_rates", ""), levels) == read_block_rates(
        text, levels
    )


def test_saved_values_are_all_text(folder):
    path = lora_file(
        folder,
        TrainConfig.parse(
            {"train_data_dir": str(folder / "train"), "output_name": "zib", "trigger_word": "猫"}
        ),
    )
    with safe_open(path, "pt") as file:
        found = file.metadata()
    assert found["modelspec.trigger_phrase"] == "猫" and json.loads(found["ss_tag_frequency"])[
        "10_zib cat"
    ] == {"猫": 3, "zib": 3, "cat": 3, "red": 1}


@needs_toml
def test_a_run_with_imported_settings_writes_what_kohya_would(folder, host):
    """The same config made small enough to be run: 64 pixels, an optimizer that needs no
    package.
    """
    text = (folder / "run.toml").read_text()
    for theirs, small in (
        ("512,512", "64,64"),
        ("= 320", "= 32"),
        ("= 960", "= 96"),
        ("steps = 64", "steps = 8"),
        ("AdamW8bit", "AdamW"),
        ("output_dir", "logging_dir"),
        ("max_train_epochs = 4", "max_train_epochs = 1"),
        ("gradient_checkpointing = true", "gradient_checkpointing = false"),
        ('mixed_precision = "fp16"', 'mixed_precision = "no"'),
    ):
        text = text.replace(theirs, small)
    (folder / "small.toml").write_text(text)
    settings = import_settings(folder / "small.toml").settings
    settings.pop("base_model")  # the host's is trained
    result = train_lora(TrainConfig.parse({**settings, "preview": False}), host)
    with safe_open(result.output_file, "pt") as file:
        ours = file.metadata()
    changed = {
        "ss_resolution": "(64, 64)",
        "ss_min_bucket_reso": "32",
        "ss_max_bucket_reso": "96",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.99))",
        "modelspec.resolution": "64x64",
        "ss_mixed_precision": "no",
        "ss_num_epochs": "1",
        "ss_max_train_steps": "15",
        "ss_steps": "15",
        "ss_epoch": "1",
        "ss_gradient_checkpointing": "False",
    }
    differ = {
        key
        for key, theirs in {**WRITTEN_BY_KOHYA, **changed}.items()
        if not same(ours.get(key), theirs)
    }
    assert differ - set(DIFFERENT) <= {"ss_new_sd_model_hash", "ss_bucket_info"}, {
        key: ours.get(key) for key in differ
    }
    again, config = (
        TrainConfig.parse(import_settings(result.output_file).settings),
        TrainConfig.parse(settings),
    )
    assert settings_kept_in_lora(again) == settings_kept_in_lora(config)
