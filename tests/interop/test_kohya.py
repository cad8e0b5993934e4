"""sd-scripts' names, defaults and habits, against its documented meaning."""

import math

import pytest

from lora_trainer.interop.conversion import (
    Conversion,
    SkippedSetting,
    is_unset,
    parse_arguments,
    parse_text,
    valid_settings,
)
from lora_trainer.interop.kohya import translate
from lora_trainer.interop.kohya_network import block_list
from lora_trainer.lora.blocks import read_block_rates, read_blocks
from lora_trainer.settings.config import setting_of


def taken(values, complete=False):
    conversion = Conversion(values)
    translate(conversion, complete=complete)
    return valid_settings(conversion), {item.key: item for item in conversion.left_out}, conversion


def settings(values, complete=False):
    return taken(values, complete)[0]


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
        (
            {"network_module": "networks.lora", "network_dim": 16},
            dict(lora_type="lora", lora_targets="attention+feed-forward", lora_rank=16),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_dim": 16, "network_alpha": 0},
            dict(lora_alpha=16.0),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_args": ["conv_dim=8"]},
            dict(lora_targets="all", conv_rank=8, conv_alpha=1.0),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_args": "conv_dim=8 conv_alpha=0"},
            dict(lora_targets="all", conv_rank=8, conv_alpha=8.0),
            [],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_dim": 16,
                "network_alpha": 8,
                "network_args": ["algo=locon"],
            },
            dict(lora_type="lora", lora_targets="all", conv_rank=16, conv_alpha=8.0),
            [],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": [
                    "algo=lokr",
                    "preset=attn-mlp",
                    "factor=8",
                    "dropout=0.2",
                    "rs_lora=True",
                ],
            },
            dict(
                lora_type="lokr",
                lora_targets="attention+feed-forward",
                lokr_factor=8,
                lora_dropout=0.2,
                rslora=True,
            ),
            ["network_args dropout"],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": [
                    "algo=loha",
                    "preset=attn-only",
                    "dora_wd=True",
                    "use_tucker=False",
                ],
            },
            dict(lora_type="loha", lora_targets="attention", use_dora=True),
            [],
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["preset=unet-transformer-only"]},
            dict(train_text_encoder=False),
            [],
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=boft"]},
            dict(lora_type="lora"),
            ["network_module"],
        ),
        ({"network_module": "networks.oft"}, dict(lora_type="lora"), ["network_module"]),
        (
            {
                "network_module": "networks.lora",
                "network_args": ["loraplus_lr_ratio=16", "nonsense=1"],
            },
            dict(loraplus_lr_ratio=16.0),
            ["network_args nonsense"],
        ),
        (
            {
                "network_module": "networks.lora",
                "network_args": ["loraplus_lr_ratio=16", "loraplus_text_encoder_lr_ratio=4"],
            },
            dict(loraplus_lr_ratio=16.0, loraplus_text_encoder_lr_ratio=4.0),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_args": ["loraplus_unet_lr_ratio=8"]},
            dict(loraplus_lr_ratio=8.0, loraplus_text_encoder_lr_ratio=1.0),
            [],
        ),
        (
            {
                "network_module": "networks.lora",
                "network_args": ["loraplus_text_encoder_lr_ratio=4"],
            },
            dict(loraplus_text_encoder_lr_ratio=4.0),
            [],
        ),
        ({"network_module": "networks.lora", "network_args": ["loraplus_lr_ratio=0"]}, {}, []),
        (
            {"network_module": "networks.loha", "network_args": ["loraplus_lr_ratio=16"]},
            dict(lora_type="loha"),
            ["network_args loraplus_lr_ratio"],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": ["algo=locon", "weight_decompose=True", "wd_on_output=True"],
            },
            dict(lora_type="lora", use_dora=True),
            ["network_args wd_on_output"],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": ["algo=locon", "dora_wd=True", "wd_on_output=False"],
            },
            dict(use_dora=True),
            [],
        ),
        (
            {"network_dim": 16, "network_alpha": 16, "conv_dim": 4},
            dict(lora_targets="all", conv_rank=4, conv_alpha=1.0),
            [],
        ),
        (
            {"network_args": ["conv_dim=4"]},
            dict(lora_targets="all", conv_rank=4, conv_alpha=1.0),
            [],
        ),
        (
            {"conv_dim": 0, "conv_alpha": 2},
            dict(lora_targets=None, conv_rank=None, conv_alpha=None),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_dropout": 0.1},
            dict(lora_dropout=0.1),
            ["network_dropout"],
        ),
        ({"network_module": "networks.lora", "network_dropout": 0}, dict(lora_dropout=None), []),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "factor=0"]},
            dict(lora_type="lokr", lokr_factor=None),
            [],
        ),
        ({"network_module": "networks.lora", "network_dim": "Dynamic"}, {}, ["network_dim"]),
        (
            {
                "network_module": "lycoris.kohya",
                "network_dim": 100000,
                "network_args": ["algo=lokr"],
            },
            dict(lora_rank=1024, conv_rank=1024),
            ["network_dim"],
        ),
        ({"network_dim": 100000}, {}, ["network_dim"]),
    ],
)
def test_networks(values, expected, left):
    found, left_out, _ = taken(values)
    assert {name: found.get(name) for name in expected} == expected and sorted(left_out) == left


def sd1(**blocks):
    names = [*(f"IN{at:02}" for at in range(12)), "MID", *(f"OUT{at:02}" for at in range(12))]
    return [blocks.get(name, 0) for name in names]


@pytest.mark.parametrize(
    "ranks, alphas, expected",
    [
        (
            sd1(IN04=8, IN05=8, MID=64, OUT03=8),
            [4] * 12 + [32] + [4] * 12,
            "IN04-IN05, MID=64:32, OUT03",
        ),
        (sd1(IN11=8, MID=8, OUT00=8), [4] * 25, "IN11, MID, OUT00"),
        ([8] * 25, [4] * 25, ""),
        ([16] * 25, [4] * 25, "IN00-IN11=16:4, MID=16:4, OUT00-OUT11=16:4"),
        ([0, *[0] * 4, *[8] * 5, *[16] * 3, *[0] * 9, 0], [4] * 23, "IN04-IN08, MID=16:4"),
        ([0] * 25, [4] * 25, None),
        ([8] * 12, [4] * 12, None),
        ([8] * 10 + [8, 4, 8] + [8] * 10, [4] * 23, None),
    ],
)
def test_blocks_by_the_webuis_names(ranks, alphas, expected):
    assert block_list(ranks, alphas, rank=8, alpha=4) == expected


def test_our_reader_takes_the_blocks_as_they_were_meant():
    found = settings(
        {
            "network_module": "networks.lora",
            "network_dim": 8,
            "network_alpha": 4,
            "network_args": [
                "block_dims=" + ",".join(map(str, sd1(IN04=8, IN05=16, MID=64))),
                "block_alphas=" + ",".join(["2"] * 25),
            ],
        }
    )
    blocks = read_blocks(found["lora_blocks"], 4)
    assert {name: (block.rank, block.alpha) for name, block in blocks.items()} == {
        "IN04": (8, 2.0),
        "IN05": (16, 2.0),
        "MID": (64, 2.0),
    }


def block_rates(*arguments, **more):
    found, left_out, _ = taken(
        {
            "network_module": "networks.lora",
            "network_dim": 8,
            "network_args": list(arguments),
            **more,
        }
    )
    return found.get("block_learning_rates"), [key for key in left_out if "lr_weight" in key]


def test_blocks_that_do_not_learn():
    found = block_rates(
        "down_lr_weight=0,0,0,0,1,1,1,1,1,1,1,1",
        "mid_lr_weight=1",
        "up_lr_weight=1,1,1,1,0,0,0,0,0,0,0,0",
    )
    assert found == ("IN00-IN03=0, OUT04-OUT11=0", [])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["down_lr_weight=0.5,1,1,1,1,1,1,1,1,1,1,1", "mid_lr_weight=2"], "IN00=0.5, MID=2"),
        (
            ["up_lr_weight=1,,0.25"],
            "OUT01=0, OUT02=0.25",
        ),  # what is left out is 0 between, 1 at the end
        (["down_lr_weight=1e-3,1", "block_lr_zero_threshold=0"], "IN00=0.001"),
        (["down_lr_weight=0.1,1", "block_lr_zero_threshold=0.1"], "IN00=0"),
        (["up_lr_weight=zeros+.25"], "OUT00-OUT11=0.25"),
        (
            ["down_lr_weight=sine", "up_lr_weight=cosine", "block_lr_zero_threshold=0.9"],
            (
                "IN00-IN07=0, IN08=0.909632, IN09=0.959493, IN10=0.989821, OUT01=0.989821,"
                " OUT02=0.959493, OUT03=0.909632, OUT04-OUT11=0"
            ),
        ),
        (
            ["down_lr_weight=linear+0.1", "mid_lr_weight=0.7,0.7,0.7"],
            ", ".join(f"IN{at:02}={at / 8 + 0.1:g}" for at in range(9)) + ", MID=0.7",
        ),
        (["down_lr_weight=1,1,1,1,1,1,1,1,1,1,1,1", "mid_lr_weight=1", "up_lr_weight=1,1"], None),
    ],
)
def test_learning_rates_of_blocks(arguments, expected):
    """As sd-scripts' get_block_lr_weight reads them; three values for the middle are SDXL's, which
    has nine blocks on each side.
    """
    found, left_out = block_rates(*arguments)
    assert found == expected and not left_out
    assert read_block_rates(found or "", 3 if "0.7" in str(found) else 4) is not None


def test_sdxl_is_told_by_the_checkpoint_and_its_middle_is_one_block():
    found, left_out = block_rates(
        "up_lr_weight=reverse_linear",
        "mid_lr_weight=0.5,0.5,1",
        pretrained_model_name_or_path="sdxl.safetensors",
    )
    assert (
        found.startswith("MID=0.5, OUT01=0.875, OUT02=0.75")
        and found.endswith("OUT08=0")
        and left_out == ["network_args mid_lr_weight"]
    )


@pytest.mark.parametrize(
    "bad",
    [
        "down_lr_weight=tan",
        "down_lr_weight=-1,1",
        "up_lr_weight=1,x",
        "up_lr_weight=cosine+x",
        "down_lr_weight=0.5",
    ],
)
def test_what_is_no_curve_is_said(bad):
    assert block_rates(bad) == (None, [f"network_args {bad.partition('=')[0]}"])


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


def test_what_is_not_needed_or_not_possible_is_said_once_and_with_its_reason():
    _, left_out, _ = taken(
        {
            "xformers": True,
            "sdpa": False,
            "wandb_api_key": "secret",
            "huggingface_token": "",
            "cache_latents": True,
            "log_with": "wandb",
            "save_n_epoch_ratio": 2,
            "adaptive_noise_scale": 0.01,
            "t5xxl": "x.safetensors",
            "lora_rnak": 8,
            "qwertz": 3,
            "sample_prompts": None,
            "network_dim": 5000,
        }
    )
    assert all(isinstance(item, SkippedSetting) and item.reason for item in left_out.values())
    assert {key: item.reason.split(":")[0] for key, item in left_out.items()} == {
        "xformers": "not needed here",
        "wandb_api_key": "not needed here",
        "cache_latents": "not needed here",
        "log_with": "not needed here",
        "save_n_epoch_ratio": "it is a share of the epochs, which the file does not say",
        "adaptive_noise_scale": left_out["adaptive_noise_scale"].reason,
        "t5xxl": "not needed here",
        "lora_rnak": "this setting is not known here; is lora_rank meant?",
        "qwertz": "this setting is not known here",
        "network_dim": "Rank",
    }
    assert (
        left_out["wandb_api_key"].value == "(not shown)" and left_out["network_dim"].value == 5000
    )


def test_a_dropout_of_another_kind_is_said():
    reasons = [
        taken({"network_module": module, "network_dropout": 0.1})[1]["network_dropout"].reason
        for module in ("networks.lora", "lycoris.kohya")
    ]
    assert (
        all("inputs" in reason for reason in reasons)
        and "between" in reasons[0]
        and "between" not in reasons[1]
    )
    assert "kohya" in setting_of("lora_dropout").help


@pytest.mark.parametrize(
    "odd",
    [
        "-" * 900 + "1",
        "-" * 100_000 + "1",
        "(" * 900,
        "{[]: 1}",
        "{{}}",
        "9" * 5000,
        "[" * 900 + "]" * 900,
        "'" * 5000,
    ],
)
def test_nonsense_in_arguments_is_taken_as_words_or_left_out(odd):
    for given in (
        [f"eps={odd}", "betas=(0.9, 0.99)"],
        {"eps": odd, "betas": "(0.9, 0.99)"},
        f'["eps={odd}", "betas=(0.9, 0.99)"]',
    ):
        found = settings({"optimizer_type": "AdamW", "optimizer_args": given})
        assert found["optimizer"] == "adamw" and found.get(
            "optimizer_args", "betas=0.9,0.99"
        ).endswith("betas=0.9,0.99")
    for name in ("optimizer_args", "network_args"):
        assert (
            settings({"network_dim": 8, name: odd})["lora_rank"] == 8
            and settings({"network_dim": 8, name: "[" * 100_000})["lora_rank"] == 8
        )


def test_arguments_and_emptiness():
    assert parse_arguments(["a=1", "b = x=y", "c", ""]) == {"a": "1", "b": "x=y", "c": True}
    assert parse_arguments('{"conv_dim": "8", "dropout": null}') == {
        "conv_dim": "8",
        "dropout": None,
    }
    assert (
        parse_arguments('a="1 2" b=None') == {"a": "1 2", "b": None}
        and parse_arguments(None) == {}
        and parse_arguments(3) == {}
    )
    assert [parse_text(text) for text in ("", " None ", "true", "False", " x ")] == [
        None,
        None,
        True,
        False,
        "x",
    ]
    assert all(map(is_unset, (None, False, "", 0, 0.0, "0", [], {}))) and not any(
        map(is_unset, (True, 1, "x", [0], math.nan))
    )


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
