"""Names from other trainers, ranges, and sentences that name the field."""

import dataclasses

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.runs.step_options import layer_choice
from lora_trainer.settings.config import (
    GROUPS,
    KOHYA_NAMES,
    TrainConfig,
    all_settings,
    setting_of,
)
from lora_trainer.settings.lora_name import check_name


def refused(values):
    with pytest.raises(Refused) as caught:
        TrainConfig.parse(values)
    return caught.value


@pytest.mark.parametrize(
    "name", ["block_learning_rates", "lora_blocks", "trigger_word", "optimizer_args"]
)
def test_a_text_of_megabytes_is_refused_before_it_is_read(name):
    assert (
        "20,000" in refused({name: "IN01=1e-4," * 3000}).message
        and refused({name: "IN01=1e-4," * 3000}).field == name
    )
    assert getattr(TrainConfig.parse({name: "x" * 20_000}), name)


def test_lora_scripts_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        """task_type: stable-diffusion
train_data_dir: data/x
metadata_path: data/x/metadata.csv
base_model: model.safetensors
lora_rank: 8
lora_alpha: 4
lora_dropout: 0.1
batch_size: 2
gradient_accumulation_steps: 2
epochs: 3
max_train_steps: null
resolution: 512
learning_rate: 1e-4
optimizer: AdamW
scheduler: cosine
output_dir: out
output_name: mein Stil 猫
overwrite: yes
save_steps: 100
logging_dir: logs
mixed_precision: bf16
gradient_checkpointing: true
seed: 7
""",
        encoding="utf-8",
    )
    config = TrainConfig.load(path)
    assert (
        config.lora_rank,
        config.lora_alpha,
        config.learning_rate,
        config.optimizer,
        config.overwrite,
        config.max_train_steps,
    ) == (8, 4, 1e-4, "adamw", True, 0)
    assert config.output_name == "mein Stil 猫"


def test_kohya_toml_in_sections(tmp_path):
    pytest.importorskip("tomllib" if __import__("sys").version_info >= (3, 11) else "tomli")
    path = tmp_path / "kohya.toml"
    path.write_text(
        "[network]\nnetwork_dim = 32\nnetwork_alpha = 16\n[train]\ntrain_batch_size ="
        ' 2\nmax_train_epochs = 4\nunet_lr = 2e-4\nresolution = "512,768"\nlr_scheduler ='
        ' "constant_with_warmup"\nsave_precision = "float"\n',
        encoding="utf-8",
    )
    config = TrainConfig.load(path)
    assert (
        config.lora_rank,
        config.lora_alpha,
        config.batch_size,
        config.epochs,
        config.learning_rate,
    ) == (32, 16, 2, 4, 2e-4)
    assert (config.resolution, config.scheduler, config.save_precision) == (627, "constant", "fp32")


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


@pytest.mark.parametrize(
    "values, field, sentence",
    [
        ({"lora_rnak": 3}, "lora_rnak", "Did you mean 'lora_rank'"),
        ({"lora_rank": 0}, "lora_rank", "Rank: 0 is out of range. Use 1 to 1024"),
        ({"lora_rank": 10000}, "lora_rank", "10000 is out of range"),
        ({"lora_rank": 1.5}, "lora_rank", "1.5 is not a whole number"),
        ({"learning_rate": "abc"}, "learning_rate", "'abc' is not a number"),
        ({"learning_rate": float("nan")}, "learning_rate", "nan is not a number"),
        ({"learning_rate": -1}, "learning_rate", "out of range"),
        ({"scheduler": "cosin"}, "scheduler", "Did you mean cosine"),
        ({"mirror": "perhaps"}, "mirror", "not true or false"),
        ({"seed": [1]}, "seed", "is not a whole number"),
        ({"epochs": True}, "epochs", "True is not a whole number"),
        ({"resolution": "9" * 400}, "resolution", "is not a whole number"),
        ({"output_name": "a/b"}, "output_name", "contains '/'"),
        ({"output_name": "../evil"}, "output_name", "contains '..'"),
        ({"output_name": "x" * 300}, "output_name", "300 characters"),
        ({"output_name": "con"}, "output_name", "reserved"),
        ({"output_name": "a:b"}, "output_name", "contains ':'"),
        ({"output_name": "<x>"}, "output_name", "contains '<'"),
        ({"output_name": ".hidden"}, "output_name", "full stop"),
    ],
)
def test_bad_values_name_the_field(values, field, sentence):
    error = refused(values)
    assert error.field == field and sentence in error.message


@pytest.mark.parametrize("name", ["mirror", "seed", "learning_rate", "scheduler", "resolution"])
def test_a_value_that_is_nested_too_deep_to_be_written_out_is_refused_too(name):
    value = []
    for _ in range(5000):
        value = [value]
    error = refused({name: value})
    assert error.field == name and len(error.message) < 300


@pytest.mark.parametrize("name", ["猫の絵", "🎨 art", "a b-c_d.1", "Ünïcode"])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_unreadable_files_are_said(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match="settings file"):
        TrainConfig.load(path)


@pytest.mark.parametrize(
    "ending, content, sentence",
    [
        ("yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "alias"),
        ("yaml", "lora_rank: &rank 8\nconv_rank: *rank", "alias"),
        ("yaml", "seed: 0x" + "f" * 9000, "more than 1024 bits"),
        ("yaml", "seed: " + "[" * 40 + "]" * 40, "nested more than 19 levels"),
        ("json", '{"seed": ' + "[" * 900 + "]" * 900 + "}", "nested more than 19 levels"),
        ("json", '{"seed": ' + '{"a": ' * 20 + "1" + "}" * 21, "nested"),
        ("json", '{"seed": [' + "1," * 100_000 + "1]}", "more than 100000 values"),
        ("json", '{"seed": [[' + "1,2],[" * 40_000 + "1]]}", "more than 100000 values"),
    ],
)
def test_files_that_could_not_be_handled_are_refused(tmp_path, ending, content, sentence):
    path = tmp_path / f"x.{ending}"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match=sentence) as caught:
        TrainConfig.load(path)
    assert caught.value.code == "unreadable_config"


def test_anchors_without_an_alias_are_harmless(tmp_path):
    (tmp_path / "x.yaml").write_text("lora_rank: &rank 8", encoding="utf-8")
    assert TrainConfig.load(tmp_path / "x.yaml").lora_rank == 8


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


@pytest.mark.parametrize(
    "setting",
    [setting for setting in all_settings() if setting.minimum is not None],
    ids=lambda setting: setting.name,
)
def test_the_ends_of_every_range_are_taken_and_what_is_beyond_is_not(setting):
    name, low, high = setting.name, setting.minimum, setting.maximum
    assert (
        getattr(TrainConfig.parse({name: low}), name),
        getattr(TrainConfig.parse({name: high}), name),
    ) == (low, high)
    for beyond in (low - 1, high + 1):
        assert refused({name: beyond}).field == name


@pytest.mark.parametrize(
    "setting",
    [setting for setting in all_settings() if setting.choices],
    ids=lambda setting: setting.name,
)
def test_every_choice_is_taken(setting):
    name = setting.name
    assert [getattr(TrainConfig.parse({name: choice}), name) for choice in setting.choices] == list(
        setting.choices
    )
    assert refused({name: "no such choice"}).field == name


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


def test_an_alpha_left_out_is_the_rank():
    assert (
        TrainConfig.parse({"lora_rank": 8}).alpha,
        TrainConfig.parse({"lora_rank": 8, "alpha": 16}).alpha,
        TrainConfig().alpha,
    ) == (8, 16, 16)
    assert (
        TrainConfig.parse({"lora_rank": 8}).meant()
        == TrainConfig.parse({"lora_rank": 8, "lora_alpha": 8}).meant()
    )
    assert layer_choice(TrainConfig.parse({"lora_rank": 8})).alpha == 8


def test_yaml_round_trip(tmp_path):
    config = TrainConfig.parse({"output_name": "猫", "learning_rate": 3e-5, "mirror": True})
    (tmp_path / "c.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert TrainConfig.load(tmp_path / "c.yaml") == config
