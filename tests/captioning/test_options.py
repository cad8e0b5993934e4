"""Options as requests and command lines give them."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.options import describe_option, read_option, read_options
from lora_trainer.settings.setting import Choice, Setting

WHOLE = Setting(6, "Beams", "", name="beams", minimum=1, maximum=32)
SHARE = Setting(0.2, "Threshold", "", name="threshold", minimum=0.0, maximum=1.0, step=0.05)
CHOICE = Setting(
    "a", "Model", "", name="model", choices=(Choice("a", "A"), Choice("b", "B", "bigger"))
)
SWITCH, TEXT = Setting(False, "Rating", "", name="rating"), Setting("", "Prefix", "", name="prefix")


@pytest.mark.parametrize(
    "option, given, read",
    [
        (WHOLE, 3, 3),
        (WHOLE, "3", 3),
        (WHOLE, 3.0, 3),
        (SHARE, "0.35", 0.35),
        (SHARE, 1, 1.0),
        (CHOICE, "b", "b"),
        (SWITCH, "false", False),
        (SWITCH, "On", True),
        (SWITCH, True, True),
        (TEXT, " a ", " a "),
    ],
)
def test_values_are_read(option, given, read):
    assert read_option(option, given) == read and type(read_option(option, given)) is type(read)


@pytest.mark.parametrize(
    "option, given, says",
    [
        (WHOLE, 3.5, "not a whole number"),
        (WHOLE, True, "not a whole number"),
        (WHOLE, 0, "it can be 1 to 32"),
        (WHOLE, "many", "not a whole number"),
        (SHARE, float("nan"), "not a number"),
        (SHARE, [], "not a number"),
        (CHOICE, "c", "it can be 'a', 'b'"),
        (CHOICE, ["a"], "it can be"),
        (SWITCH, "perhaps", "true or false"),
        (SWITCH, 1, "true or false"),
        (TEXT, 3, "is not text"),
        (TEXT, "x" * 5000, "is not text"),
    ],
)
def test_bad_values_are_refused_with_their_name(option, given, says):
    with pytest.raises(Refused, match=says) as caught:
        read_options([option], {option.name: given})
    assert caught.value.field == option.name


def test_defaults_fill_in_and_unknown_names_are_refused():
    assert read_options([WHOLE, TEXT], {"prefix": "x"}) == {"beams": 6, "prefix": "x"}
    with pytest.raises(
        Refused, match="There is no option 'beam'; there are beams, prefix"
    ) as caught:
        read_options([WHOLE, TEXT], {"beam": 3})
    assert caught.value.field == "beam"


def test_interfaces_get_only_what_an_option_has():
    assert describe_option(SHARE) == {
        "name": "threshold",
        "title": "Threshold",
        "help": "",
        "type": "float",
        "default": 0.2,
        "minimum": 0.0,
        "maximum": 1.0,
        "step": 0.05,
    }
    assert (
        describe_option(CHOICE)["choices"][1] == {"value": "b", "title": "B", "help": "bigger"}
        and describe_option(SWITCH)["type"] == "bool"
    )


def test_a_condition_is_told_by_name_and_value():
    option = Setting("", "File", "", name="file", effective_when=({"model": ("own",)},))
    assert describe_option(option)["only_if"] == {"model": "own"}
