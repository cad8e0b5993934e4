"""Request bodies: what is read and what the OpenAPI document says of it are one description."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.settings.config import TrainConfig, all_settings
from lora_trainer.web.bodies import (
    ConfigValue,
    JsonBody,
    JsonObjectValue,
    Number,
    OneOf,
    Switch,
    Text,
    Texts,
    TextsByName,
    WholeNumber,
    setting_value,
)

BODY = JsonBody(
    optional=True,
    name=Text(required=True),
    help=Text(),
    steps=WholeNumber(1, 150, default=20),
    seed=WholeNumber(0, 9, cuts_fraction=True),
    guidance=Number(1, 30, default=7.0),
    overwrite=Switch(),
    ending=OneOf((".txt", ".caption")),
    files=Texts(),
    captions=TextsByName(),
    options=JsonObjectValue({"type": "object"}, of="names"),
)


def test_what_is_left_out_has_its_default():
    assert BODY.read({"name": "x", "other": 1}) == {
        "name": "x",
        "help": None,
        "steps": 20,
        "seed": None,
        "guidance": 7.0,
        "overwrite": False,
        "ending": ".txt",
        "files": None,
        "captions": None,
        "options": {},
    }
    assert BODY.read({"name": "x", "seed": 2.5})["seed"] == 2


@pytest.mark.parametrize(
    "changes, said, code",
    [
        ({"name": None}, "`name` must be text of at most 20,000 characters.", "bad_request"),
        ({"name": "a\0b"}, "`name` must be text of at most 20,000 characters.", "bad_request"),
        (
            {"help": "x" * 20_001},
            "`help` must be text of at most 20,000 characters.",
            "bad_request",
        ),
        ({"steps": 151}, "`steps` must be a number from 1 to 150.", "bad_value"),
        ({"steps": None}, "`steps` must be a number from 1 to 150.", "bad_value"),
        ({"steps": True}, "`steps` must be a number from 1 to 150.", "bad_value"),
        ({"steps": 1.5}, "`steps` must be a whole number.", "bad_value"),
        ({"guidance": float("nan")}, "`guidance` must be a number from 1 to 30.", "bad_value"),
        ({"overwrite": 1}, "`overwrite` must be true or false.", "bad_request"),
        ({"ending": "txt"}, "`ending` must be one of .txt, .caption.", "bad_value"),
        ({"files": ["a", 1]}, "`files` must be a list of texts.", "bad_request"),
        ({"captions": {"a": 1}}, "`captions` must map file names to texts.", "bad_request"),
        ({"options": []}, "`options` must map names to values.", "bad_request"),
    ],
)
def test_what_is_not_as_described_is_refused_with_its_name(changes, said, code):
    with pytest.raises(Refused) as caught:
        BODY.read({"name": "x", **changes})
    (name,) = changes
    assert (caught.value.message, caught.value.field, caught.value.code) == (said, name, code)


def test_it_is_described_as_it_is_read():
    body = BODY.describe()["openapi_extra"]["requestBody"]
    described = body["content"]["application/json"]["schema"]
    assert not body["required"] and described["required"] == ["name"]
    assert list(described["properties"]) == list(BODY.values)
    steps = described["properties"]["steps"]
    assert steps == {"type": "integer", "minimum": 1, "maximum": 150, "default": 20}


@pytest.mark.parametrize("setting", all_settings(), ids=lambda setting: setting.name)
def test_a_settings_own_default_and_range_are_taken(setting):
    described = ConfigValue().describe()["properties"][setting.name]
    assert described["default"] == setting.default
    assert described.get("maximum") == setting.maximum
    if setting.type is not float:
        read = setting_value(setting.name).read({}, setting.name)
        assert (read or "") == (getattr(TrainConfig(), setting.name) or "")
