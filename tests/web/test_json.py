"""JSON that can always be sent."""

import json

from lora_trainer.web.json import to_json


def test_it_is_json_whatever_is_in_it():
    content = {
        "a": [float("nan"), float("inf"), 1.5, ("x", None)],
        "caf\udce9": "\udce9",
        "ü": "日本 🎨",
    }
    assert json.loads(to_json(content)) == {
        "a": [None, None, 1.5, ["x", None]],
        "caf?": "?",
        "ü": "日本 🎨",
    }
    assert to_json({"ü": 1}) == '{"ü":1}'.encode()
