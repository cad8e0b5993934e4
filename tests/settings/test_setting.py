"""One setting by itself: its value is read, or refused with what was expected."""

import dataclasses

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.settings.config import TrainConfig, all_settings
from lora_trainer.settings.setting import Setting, settings_of


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


SIDE = Setting(
    64, "Side", "How long.", group="data", name="side", minimum=8, maximum=256, unit="px"
)


def test_a_setting_reads_values_in_its_type():
    assert (SIDE.read("32"), SIDE.read(8.0)) == (32, 8) and type(SIDE.read("32.0")) is int
    switch = Setting(False, "Switch", "On or off.", group="data", name="switch")
    assert [switch.read(value) for value in ("yes", 0, "OFF", True)] == [True, False, False, True]
    text = Setting("", "Text", "Any.", group="data", name="text")
    assert [text.read(value) for value in (" a ", 3)] == ["a", "3"]
    for setting, value in ((SIDE, float("inf")), (switch, 2), (text, True), (text, "\x00")):
        with pytest.raises(Refused, match=f"^{setting.title}: ") as refusal:
            setting.read(value)
        assert (refusal.value.field, refusal.value.code) == (setting.name, "bad_value")


def test_a_range_in_words():
    assert SIDE.range_phrase() == "8 to 256 px" and SIDE.allows(8) and not SIDE.allows(257)
    assert Setting("", "Text", "Any.", group="data").range_phrase() == ""


def test_settings_are_named_by_their_fields():
    @dataclasses.dataclass
    class Two:
        one: int = dataclasses.replace(SIDE, name="").field()
        two: bool = Setting(True, "Two", "Or not.", group="data").field()

    assert [setting.name for setting in settings_of(Two).values()] == ["one", "two"]
    assert Two() == Two(64, True) and settings_of(Two)["one"].describe()["type"] == "int"
