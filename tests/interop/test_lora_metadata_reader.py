"""Settings from the header of a LoRA: kohya's, ours, and those of strangers."""

import contextlib
import json
import time

import pytest
import safetensors.torch
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.interop.readers import import_settings
from tests.support.foreign_settings import HOSTILE, KOHYAS_LORA, left, lora


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
