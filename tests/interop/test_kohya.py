"""sd-scripts' names, defaults and habits, against its documented meaning."""

import pytest

from tests.support.kohya_settings import settings, taken


def test_a_silent_config_trains_as_sd_scripts_would():
    found, left_out, conversion = taken({"resolution": "512"}, complete=True)
    assert found == {
        "resolution": 512,
        "lora_type": "lora",
        "lora_rank": 4,
        "lora_alpha": 1.0,
        "lora_targets": "attention+feed-forward",
        "learning_rate": 2e-6,
        "train_text_encoder": True,
        "text_encoder_lr": 2e-6,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "max_train_steps": 1600,
        "scheduler": "constant",
        "clip_skip": 1,
        "max_token_length": 75,
        "enable_bucket": False,
        "caption_lines": "first",
    }
    assert not left_out and conversion.assumed == set(found) - {"resolution"}


def test_a_part_of_a_config_says_nothing_of_the_rest():
    assert settings({"noise_offset": 0.1, "network_dim": 8}) == {
        "noise_offset": 0.1,
        "lora_rank": 8,
    }


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"learning_rate": 1e-4}, (1e-4, True, 1e-4, True)),
        ({"learning_rate": 1e-4, "network_train_unet_only": True}, (1e-4, True, None, False)),
        (
            {"learning_rate": 1e-4, "unet_lr": 2e-4, "text_encoder_lr": 5e-5},
            (2e-4, True, 5e-5, True),
        ),
        ({"unet_lr": 2e-4, "text_encoder_lr": 0}, (2e-4, True, None, False)),
        ({"unet_lr": "1e-4", "text_encoder_lr": ["5e-5", "5e-5"]}, (1e-4, True, 5e-5, True)),
        ({"unet_lr": "1e-4", "text_encoder_lr": "[5e-05, 1e-05]"}, (1e-4, True, 5e-5, True)),
        ({"unet_lr": 0, "text_encoder_lr": 1e-4}, (None, False, 1e-4, True)),
        (
            {"learning_rate": 1e-4, "network_train_text_encoder_only": True},
            (1e-4, False, 1e-4, True),
        ),
    ],
)
def test_which_part_learns_and_how_fast(values, expected):
    found = settings(values, complete=True)
    assert (
        found.get("learning_rate"),
        found.get("train_unet", True),
        found.get("text_encoder_lr"),
        found["train_text_encoder"],
    ) == expected


@pytest.mark.parametrize(
    "values, expected, left",
    [
        ({"optimizer_type": "AdamW8bit"}, dict(optimizer="adamw8bit", weight_decay=0.01), []),
        (
            {"optimizer_type": "Lion8bit"},
            dict(optimizer="lion", weight_decay=0.0),
            ["optimizer_type"],
        ),
        ({"use_8bit_adam": True}, dict(optimizer="adamw8bit"), []),
        (
            {
                "optimizer_type": "AdamW",
                "optimizer_args": ["weight_decay=0.1", "betas=(0.9, 0.99)", "eps=1e-06"],
            },
            dict(optimizer="adamw", weight_decay=0.1, optimizer_args="betas=0.9,0.99 eps=1e-06"),
            [],
        ),
        (
            {
                "optimizer_type": "Prodigy",
                "optimizer_args": (
                    'decouple=True weight_decay=0.01 d_coef="2" use_bias_correction=True'
                ),
            },
            dict(
                optimizer="prodigy",
                weight_decay=0.01,
                optimizer_args="decouple=True d_coef=2 use_bias_correction=True",
            ),
            [],
        ),
        (
            {"optimizer_type": "DAdaptAdam", "optimizer_args": ["weight_decay=0.02"]},
            dict(optimizer="dadaptation", optimizer_args="decouple=False"),
            [],
        ),
        (
            {
                "optimizer_type": "AdaFactor",
                "optimizer_args": [
                    "scale_parameter=False",
                    "relative_step=False",
                    "warmup_init=False",
                ],
            },
            dict(optimizer="adafactor", optimizer_args="scale_parameter=False"),
            [],
        ),
        (
            {"optimizer_type": "Adafactor"},
            dict(optimizer="adafactor"),
            ["optimizer_args relative_step"],
        ),
        (
            {"optimizer_type": "prodigyplus.ProdigyPlusScheduleFree"},
            dict(optimizer="prodigy"),
            ["optimizer_type"],
        ),
        ({"optimizer_type": "schedulefree.AdamWScheduleFree"}, dict(optimizer="schedulefree"), []),
        (
            {"optimizer_type": "pytorch_optimizer.CAME", "optimizer_args": ["weight_decay=0.01"]},
            dict(optimizer=None),
            ["optimizer_args weight_decay", "optimizer_type"],
        ),
    ],
)
def test_optimizers(values, expected, left):
    found, left_out, _ = taken(values)
    assert {name: found.get(name) for name in expected} == expected and sorted(left_out) == left


@pytest.mark.parametrize(
    "values, expected, left",
    [
        (
            {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 50},
            dict(scheduler="constant", lr_warmup_steps=50),
            [],
        ),
        (
            {"lr_scheduler": "constant", "lr_warmup_steps": 50},
            dict(scheduler="constant", lr_warmup_steps=None),
            ["lr_warmup_steps"],
        ),
        (
            {"lr_scheduler": "cosine", "lr_warmup_steps": 0.1, "max_train_steps": 500},
            dict(lr_warmup_steps=50),
            [],
        ),
        (
            {"lr_scheduler": "cosine", "lr_warmup_steps": 0.1, "max_train_epochs": 5},
            dict(lr_warmup_steps=None),
            ["lr_warmup_steps"],
        ),
        (
            {
                "lr_scheduler": "cosine_with_restarts",
                "lr_scheduler_num_cycles": 2,
                "lr_scheduler_power": 1,
            },
            dict(scheduler_cycles=2, scheduler_power=None),
            [],
        ),
        (
            {"lr_scheduler": "polynomial", "lr_scheduler_power": 2, "lr_scheduler_num_cycles": 1},
            dict(scheduler_cycles=None, scheduler_power=2.0),
            [],
        ),
        (
            {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 0.2},
            dict(scheduler=None),
            ["lr_decay_steps", "lr_scheduler"],
        ),
        (
            {"lr_scheduler_type": "torch.optim.lr_scheduler.OneCycleLR"},
            dict(scheduler="one_cycle"),
            [],
        ),
        (
            {"max_train_epochs": 5, "max_train_steps": 100},
            dict(epochs=5, max_train_steps=None),
            ["max_train_steps"],
        ),
    ],
)
def test_length_and_schedule(values, expected, left):
    found, left_out, _ = taken(values)
    assert {name: found.get(name) for name in expected} == expected and sorted(left_out) == left


@pytest.mark.parametrize(
    "values, expected, left",
    [
        ({"resolution": "512,768"}, dict(resolution=627), []),
        (
            {"resolution": "512,768", "enable_bucket": False},
            dict(resolution=627, enable_bucket=False),
            ["resolution"],
        ),
        ({"resolution": [1024, 1024]}, dict(resolution=1024), []),
        ({"resolution": "big"}, dict(resolution=None), ["resolution"]),
        ({"bucket_reso_steps": 1}, dict(bucket_step=8), ["bucket_reso_steps"]),
        ({"color_aug": True}, dict(color_jitter=0.05), []),
        ({"alpha_mask": True}, dict(masked_loss="alpha"), []),
        (
            {"masked_loss": True, "conditioning_data_dir": "masks"},
            dict(masked_loss=None),
            ["conditioning_data_dir", "masked_loss"],
        ),
        ({"caption_extension": ".caption"}, {"caption_extension": ".caption"}, []),
        ({"caption_extension": "txt", "caption_separator": ","}, {"caption_extension": ".txt"}, []),
        ({"caption_extension": ".cap"}, {}, ["caption_extension"]),
        (
            {"enable_wildcard": True},
            {"caption_lines": "alternatives", "caption_wildcards": True},
            [],
        ),
        ({"enable_wildcard": False}, {"caption_lines": "first"}, []),
        ({"in_json": "/data/meta_cap.json"}, {"metadata_path": "/data/meta_cap.json"}, []),
        ({"metadata_file": "/data/meta_lat.json"}, {"metadata_path": "/data/meta_lat.json"}, []),
        ({"token_warmup_min": 1, "token_warmup_step": 0}, {}, []),
        (
            {
                "v_parameterization": True,
                "zero_terminal_snr": True,
                "scale_v_pred_loss_like_noise_pred": True,
            },
            dict(prediction_type="v_prediction", zero_terminal_snr="on", scale_v_pred_loss=True),
            [],
        ),
        (
            {"v_parameterization": False, "zero_terminal_snr": False},
            dict(prediction_type=None, zero_terminal_snr=None),
            [],
        ),
        ({"clip_skip": 2}, dict(clip_skip=2), []),
        ({"clip_skip": 2, "resolution": "1024,1024"}, dict(clip_skip=None), ["clip_skip"]),
        (
            {"noise_offset": 0, "noise_offset_random_strength": True},
            dict(noise_offset_random=None),
            [],
        ),
        (
            {"noise_offset": 0.05, "noise_offset_random_strength": True},
            dict(noise_offset_random=True),
            [],
        ),
        (
            {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
            dict(input_perturbation=0.1, input_perturbation_random=True),
            [],
        ),
        ({"loss_type": "l2", "huber_c": 0.5}, dict(huber_c=None), []),
        (
            {"loss_type": "smooth_l1", "huber_c": 0.5, "huber_schedule": "constant"},
            dict(loss_type="smooth_l1", huber_c=0.5, huber_schedule="constant"),
            [],
        ),
        (
            {"prior_loss_weight": 0, "max_grad_norm": 0},
            dict(prior_loss_weight=0.0, max_grad_norm=0.0),
            [],
        ),
        (
            {"pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5"},
            dict(base_model=None),
            ["pretrained_model_name_or_path"],
        ),
        (
            {"pretrained_model_name_or_path": "D:\\models\\a.ckpt"},
            dict(base_model="D:\\models\\a.ckpt"),
            [],
        ),
        ({"save_precision": "float"}, dict(save_precision="fp32"), []),
        ({"mixed_precision": "fp8"}, dict(mixed_precision=None), ["mixed_precision"]),
        ({"output_name": "a/b"}, dict(output_name=None), ["output_name"]),
    ],
)
def test_meanings(values, expected, left):
    found, left_out, _ = taken(values)
    assert {name: found.get(name) for name in expected} == expected and sorted(left_out) == left


@pytest.mark.parametrize(
    "silent, sdxl_mark",
    [
        (1, {}),
        (None, {"resolution": "1024,1024"}),
        (None, {"no_half_vae": True}),
        (None, {"v2": True}),
        (None, {"pretrained_model_name_or_path": "ponyDiffusionV6XL.safetensors"}),
    ],
)
def test_without_clip_skip_each_family_is_read_as_in_sd_scripts(silent, sdxl_mark):
    assert settings({"network_dim": 8, **sdxl_mark}, complete=True).get("clip_skip") == silent


@pytest.mark.parametrize(
    "values, expected, left",
    [
        (
            {"save_every_n_epochs": 2, "save_last_n_epochs": 3},
            dict(save_every_n_epochs=2, keep_snapshots=3),
            [],
        ),
        (
            {"save_every_n_steps": 100, "save_last_n_steps": 300},
            dict(save_steps=100, keep_snapshots=4),
            [],
        ),  # 700, 800, 900, 1000
        (
            {"save_every_n_steps": 100, "save_last_n_steps": 250},
            dict(save_steps=100, keep_snapshots=3),
            [],
        ),
        (
            {
                "save_every_n_steps": 100,
                "save_last_n_steps": 100,
                "save_every_n_epochs": 1,
                "save_last_n_epochs": 5,
            },
            dict(keep_snapshots=5),
            ["save_last_n_steps"],
        ),
        (
            {
                "save_every_n_steps": 100,
                "save_last_n_steps": 900,
                "save_every_n_epochs": 1,
                "save_last_n_epochs": 5,
            },
            dict(keep_snapshots=10),
            [],
        ),
        ({"max_train_epochs": 10, "save_n_epoch_ratio": 3}, dict(save_every_n_epochs=3), []),
        (
            {"max_train_steps": 10, "save_n_epoch_ratio": 3},
            dict(save_every_n_epochs=None),
            ["save_n_epoch_ratio"],
        ),
        ({"save_last_n_steps": 300}, dict(keep_snapshots=None), ["save_last_n_steps"]),
        (
            {"save_every_n_epochs": 0, "save_last_n_epochs": 0, "save_last_n_steps": 0},
            dict(keep_snapshots=None, save_every_n_epochs=None),
            [],
        ),
    ],
)
def test_snapshots_and_how_many_are_kept(values, expected, left):
    found, left_out, _ = taken(values)
    assert {name: found.get(name) for name in expected} == expected and sorted(left_out) == left
