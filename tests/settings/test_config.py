"""Names from other trainers, ranges, and sentences that name the field."""

import dataclasses

from lora_trainer.runs.step_options import layer_settings
from lora_trainer.settings.config import (
    GROUPS,
    TrainConfig,
    all_settings,
    setting_of,
)


def test_every_setting_has_title_help_group_and_limits_around_its_default():
    for setting in all_settings():
        name, default = setting.name, setting.default
        assert setting.title and setting.help.endswith((".", "?")) and setting.group in GROUPS, name
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        assert (setting.minimum is not None) == (setting.maximum is not None) == number, (
            f"{name}: a number has a range, nothing else has"
        )
        if number:
            assert setting.minimum <= default <= setting.maximum, name
            assert setting.minimum < setting.maximum, name
        if setting.choices is not None:
            assert isinstance(default, str) and default in setting.choices, name
            assert len(set(setting.choices)) == len(setting.choices), name
        assert getattr(TrainConfig.parse({name: default}), name) == default
    assert {setting.group for setting in all_settings()} == set(GROUPS)
    assert len({setting.title for setting in all_settings()}) == len(all_settings())


def test_every_field_is_declared_as_a_setting_of_its_type():
    fields = dataclasses.fields(TrainConfig)
    assert [field.name for field in fields] == [setting.name for setting in all_settings()]
    for field in fields:
        assert field.type is setting_of(field.name).type, field.name
        assert field.default == setting_of(field.name).default, field.name


def test_what_names_a_place_stays_on_this_machine():
    """A LoRA's metadata and presets are shared: no path may be in them, nor come out of them."""
    for setting in all_settings():
        if setting.path is not None:
            assert not setting.kept_in_lora and not setting.kept_in_presets, setting.name


def test_an_alpha_left_out_is_the_rank():
    assert (
        TrainConfig.parse({"lora_rank": 8}).alpha,
        TrainConfig.parse({"lora_rank": 8, "alpha": 16}).alpha,
        TrainConfig().alpha,
    ) == (8, 16, 16)
    assert (
        TrainConfig.parse({"lora_rank": 8}).resolved()
        == TrainConfig.parse({"lora_rank": 8, "lora_alpha": 8}).resolved()
    )
    assert layer_settings(TrainConfig.parse({"lora_rank": 8})).alpha == 8


def test_yaml_round_trip(tmp_path):
    config = TrainConfig.parse({"output_name": "猫", "learning_rate": 3e-5, "mirror": True})
    (tmp_path / "c.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert TrainConfig.load(tmp_path / "c.yaml") == config
