"""Settings files of kohya_ss, as its Start button reads them."""

import pytest

from tests.support.foreign_settings import GUI, ODD, imported, left


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


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:9])
def test_whatever_a_value_is_the_rest_is_taken_over(tmp_path, odd):
    for key in [*GUI, "save_n_epoch_ratio", "save_last_n_steps", "save_every_n_steps"]:
        found = imported(
            tmp_path, {**GUI, "save_last_n_steps": 10, "save_every_n_steps": 10, key: odd}
        )
        assert len(found.settings) >= len(GUI) // 3, key
