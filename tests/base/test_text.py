"""Text and JSON that any disk takes."""

import json

import pytest

from lora_trainer.base.text import counted, is_windows_device, storable, to_json


def test_what_is_no_unicode_is_escaped():
    assert storable("caf\udce9.png") == "caf\\udce9.png" and storable("日本 🎨") == "日本 🎨"


def test_json_reads_back_as_it_was():
    value = {"filenames": ["caf\udce9.png", "日本 🎨", "back\\slash"]}
    assert json.loads(to_json(value)) == value and "日本" in to_json(value, indent=2).decode(
        "utf-8"
    )


@pytest.mark.parametrize(
    "name", ["con", "NUL.txt", "com1.safetensors", "lpt\u00b2", "conin$", "aux ."]
)
def test_names_that_windows_keeps(name):
    assert is_windows_device(name)


@pytest.mark.parametrize("name", ["cone", "com", "com10", "a con"])
def test_names_that_windows_does_not_keep(name):
    assert not is_windows_device(name)


def test_counted():
    assert [counted(number, "step") for number in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
