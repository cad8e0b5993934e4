"""OneTrainer's settings as its page saves them, and its presets, which say only what differs."""

import pytest

from lora_trainer.base.errors import Refused
from tests.support.onetrainer_settings import SAVED, imported

PRESET = {  # its "sd 1.5 LoRA", as it is delivered
    "backup_after": 10,
    "base_model_name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "batch_size": 4,
    "layer_filter_preset": "attn-mlp",
    "learning_rate": 0.0003,
    "model_type": "STABLE_DIFFUSION_15",
    "output_model_destination": "models/lora.safetensors",
    "output_model_format": "KOHYA_LORA",
    "resolution": "512",
    "training_method": "LORA",
    "vae": {"weight_dtype": "FLOAT_32"},
    "unet": {"weight_dtype": "FLOAT_16"},
    "text_encoder": {"weight_dtype": "FLOAT_16"},
}


def test_a_preset_of_its_own(tmp_path):
    found = imported(tmp_path, PRESET)
    assert found.source == "OneTrainer's settings"
    assert found.settings == {
        "output_name": "lora",
        "output_dir": "models",
        "lora_targets": "attention+feed-forward",
        "lora_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 1.0,
        "learning_rate": 3e-4,
        "train_text_encoder": True,
        "text_encoder_lr": 3e-4,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "epochs": 100,
        "scheduler": "constant",
        "lr_warmup_steps": 200,
        "batch_size": 4,
        "enable_bucket": True,
        "max_grad_norm": 1.0,
        "max_token_length": 75,
        "resolution": 512,
        "clip_skip": 1,
        "save_precision": "fp32",
        "gradient_checkpointing": True,
    }
    assert {left.key for left in found.left_out} == {"base_model_name"} and {
        "lora_alpha",
        "epochs",
        "clip_skip",
    } <= set(found.assumed)
    assert not {"learning_rate", "batch_size", "output_name"} & set(found.assumed)


def test_settings_that_its_page_saved(tmp_path):
    found = imported(tmp_path, SAVED)
    expected = {
        "base_model": "models/illustrious.safetensors",
        "output_name": "zib_v1",
        "output_dir": "/loras",
        "lora_rank": 32,
        "lora_alpha": 16.0,
        "lora_targets": "attention",
        "scheduler": "cosine_with_restarts",
        "scheduler_cycles": 2,
        "lr_warmup_steps": 100,
        "learning_rate": 1e-4,
        "text_encoder_lr": 2e-5,
        "train_text_encoder": True,
        "caption_dropout_rate": 0.05,
        "ema_decay": 0.99,
        "mixed_precision": "bf16",
        "save_precision": "fp16",
        "resolution": 1024,
        "min_snr_gamma": 5.0,
        "lora_dropout": 0.1,
        "max_grad_norm": 0.5,
        "noise_offset": 0.05,
        "input_perturbation": 0.1,
        "zero_terminal_snr": "on",
        "prediction_type": "v_prediction",
        "min_timestep": 100,
        "max_timestep": 900,
        "timestep_sampling": "logit_normal",
        "logit_mean": -1.0,
        "logit_std": 1.5,
        "masked_loss": "files",
        "masked_loss_floor": 0.2,
        "optimizer": "prodigy",
        "weight_decay": 0.02,
        "gradient_accumulation_steps": 2,
        "epochs": 20,
        "batch_size": 2,
    }
    assert {
        name: found.settings.get(name) for name in expected
    } == expected and "clip_skip" not in found.settings
    assert sorted(found.settings["optimizer_args"].split()) == [
        "betas=0.9,0.99",
        "d_coef=2.0",
        "eps=1e-08",
        "safeguard_warmup=True",
    ]
    reasons = {left.key: left.reason for left in found.left_out}
    assert reasons.keys() == {
        "huber_strength",
        "text_encoder_2",
        "concept_file_name",
        "dropout_probability",
    }
    assert found.settings["extra_resolutions"] == "768" and "geheim" not in str(found)


@pytest.mark.parametrize(
    "odd",
    ["abc", -1, 1e308, -1e308, 1e-308, [1], {"a": 1}, True, "n" * 400, "1,2"],
    ids=lambda odd: repr(odd)[:9],
)
def test_whatever_a_value_is_the_rest_is_taken_over(tmp_path, odd):
    for key in SAVED.keys() - {"training_method", "model_type"}:
        found = imported(tmp_path, {**SAVED, key: odd}, look_around=True)
        assert len(found.settings) >= 30, key


@pytest.mark.parametrize(
    "changes, key, settings",
    [
        ({"training_method": "FINE_TUNE"}, "training_method", {}),
        ({"peft_type": "OFT_2"}, "peft_type", {"lora_type": "lora"}),
        ({"learning_rate_scheduler": "REX"}, "learning_rate_scheduler", {}),
        ({"timestep_distribution": "SIGMOID"}, "timestep_distribution", {}),
        ({"optimizer": {"optimizer": "CAME"}}, "optimizer", {}),
        ({"layer_filter_preset": "custom", "layer_filter": "to_q"}, "layer_filter", {}),
        ({"learning_rate_scaler": "BATCH"}, "learning_rate_scaler", {}),
        ({"loss_weight_fn": "P2"}, "loss_weight_fn", {}),
        ({"learning_rate_warmup_steps": 0.1}, "learning_rate_warmup_steps", {}),
        ({"train_dtype": "GGUF"}, "train_dtype", {}),
        (
            {
                "unet": 3,
                "text_encoder": [],
                "optimizer": "ADAMW",
                "concepts": 5,
                "epochs": "x",
                "resolution": {},
            },
            "epochs",
            {"optimizer": "adamw"},
        ),
    ],
)
def test_what_is_left_out_says_why(tmp_path, changes, key, settings):
    found = imported(tmp_path, {**PRESET, **changes})
    assert (
        key in {left.key for left in found.left_out} and found.settings.items() >= settings.items()
    )


@pytest.mark.parametrize("kind", ["FLUX_DEV_1", "STABLE_DIFFUSION_3", "", None, 3])
def test_other_models_are_refused(tmp_path, kind):
    with pytest.raises(Refused, match="Stable Diffusion 1, 2 and XL") as caught:
        imported(tmp_path, {**PRESET, "model_type": kind})
    assert caught.value.code == "no_settings"
