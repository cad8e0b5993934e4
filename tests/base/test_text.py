"""Text and JSON that any disk takes."""

import json

from lora_trainer.base.text import storable, to_json


def test_what_is_no_unicode_is_escaped():
    assert storable("caf\udce9.png") == "caf\\udce9.png" and storable("日本 🎨") == "日本 🎨"


def test_json_reads_back_as_it_was():
    value = {"filenames": ["caf\udce9.png", "日本 🎨", "back\\slash"]}
    assert json.loads(to_json(value)) == value and "日本" in to_json(value, indent=2).decode(
        "utf-8"
    )
