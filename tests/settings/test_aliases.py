"""Names and spellings of other trainers, and resolutions of several numbers."""

import pytest

from lora_trainer.settings.config import KOHYA_NAMES, TrainConfig, in_our_names, setting_of
from tests.settings.test_setting import refused


@pytest.mark.parametrize(
    "values, resolution, extra",
    [
        ({"resolution": "512, 768"}, 512, "768"),
        ({"resolution": [512, 768, 1024]}, 512, "768, 1024"),
        ({"resolution": "512,512"}, 512, ""),
        ({"resolution": "512x768"}, 627, ""),
        ({"resolution": "512x512, 768"}, 512, "768"),
        ({"resolution": "768"}, 768, ""),
        ({"resolution": "512, 768", "extra_resolutions": "1024"}, 512, "768, 1024"),
        ({"extra_resolutions": [768, 1024]}, 512, "768, 1024"),
        ({"extra_resolutions": 768}, 512, "768"),
        ({"resolution": "512,768", "network_dim": 8}, 627, ""),
        ({"resolution": [512, 768], "network_dim": 8}, 627, ""),
        ({"resolution": "(512, 768)", "network_dim": 8}, 627, ""),
        ({"resolution": "512,512", "network_dim": 8}, 512, ""),
    ],
)
def test_a_resolution_of_several_numbers(values, resolution, extra):
    config = TrainConfig.parse(values)
    assert (config.resolution, config.extra_resolutions) == (resolution, extra)
    assert TrainConfig.parse(config.to_dict()) == config


@pytest.mark.parametrize(
    "resolution",
    [
        "512,",
        "512,cat",
        ",",
        "",
        "0x0",
        "512x",
        "1x2x3",
        "-512,768",
        [],
        [512, None],
        [[512]],
        "9" * 5000,
        "512," * 50_000,
    ],
)
def test_a_resolution_that_makes_no_sense_is_refused(resolution):
    assert refused({"resolution": resolution}).field == "resolution"


@pytest.mark.parametrize("theirs, ours", KOHYA_NAMES.items())
def test_every_name_of_kohyas_means_ours(theirs, ours):
    setting = setting_of(ours)
    assert theirs not in TrainConfig.__dataclass_fields__, (
        "a name of ours cannot be another's alias"
    )
    other = setting.choices[-1] if setting.choices else "text"
    if setting.type is bool:
        other = not setting.default
    elif setting.type in (int, float):
        other = setting.maximum
    assert getattr(TrainConfig.parse({theirs: other}), ours) == other
    assert getattr(TrainConfig.parse({theirs: other, ours: setting.default}), ours) == (
        other if theirs == "unet_lr" else setting.default
    )


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1e-4, "unet_lr": 1e-3},
        {"lr": 1e-4, "unet_lr": 1e-3},
        {"lora_dim": 8, "network_dim": 4},
        {"rank": 8, "lora_rank": 4, "network_dim": 16},
        {"max_steps": 5, "max_train_steps": None},
    ],
)
def test_one_rule_says_which_of_several_names_counts(values):
    ours = in_our_names(values)
    assert TrainConfig.parse(ours) == TrainConfig.parse(values)
    assert all(value in values.values() for value in ours.values())
