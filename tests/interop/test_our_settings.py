"""Settings in our own names: our files, and lora-scripts' YAML."""

import pytest
import yaml

from lora_trainer.settings.config import TrainConfig
from tests.support.foreign_settings import imported, left


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
