"""Files of settings that are broken, hostile or slow to read, whichever program they are of."""

import json
import time

import pytest
import safetensors.torch
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.interop.readers import import_settings
from tests.support.foreign_settings import HOSTILE, imported, left


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.safetensors", b""),
        ("x.safetensors", b"12345678"),
        ("x.safetensors", (20).to_bytes(8, "little") + b'{"a": '),
        ("x.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("x.safetensors", (10).to_bytes(8, "little") + b'{"a":  1 }'),
        ("x.json", b'{"a": '),
        ("x.json", b"[1, 2]"),
        ("x.json", b"\xff\xfe\x00"),
        ("x.yaml", b"a: ["),
        ("x.json", b"[" * 100_000),
        ("x.yaml", b"just words"),
        ("missing.json", None),
        ("x.safetensors", None),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused) as caught:
        import_settings(tmp_path / name)
    assert caught.value.code == "unreadable_config"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"foo": 1},
        {"network_dim": -5},
        {"training_method": "LORA", "model_type": "FLUX_DEV_1", "lora_rank": 16},
    ],
)
def test_files_without_settings_are_refused(tmp_path, values):
    with pytest.raises(Refused) as caught:
        imported(tmp_path, values)
    assert caught.value.code == "no_settings"


def test_a_json_beyond_what_is_read_is_refused(tmp_path):
    (tmp_path / "large.json").write_text(f'["{"a" * 6_000_000}"]')
    with pytest.raises(Refused, match="larger than 5,000 kB") as caught:
        import_settings(tmp_path / "large.json")
    assert caught.value.code == "unreadable_config"


# --- Files from strangers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending, text",
    [("yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nlearning_rate: *b\n"), ("json", "[" * 100_000)],
)
def test_files_that_grow_without_end_are_refused(tmp_path, ending, text):
    path = tmp_path / f"x.{ending}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match="cannot be read"):
        import_settings(path)


def test_files_of_ones_own_may_name_places(tmp_path):
    found = imported(tmp_path, {**HOSTILE, "lora_rank": 8})
    assert found.settings == {**HOSTILE, "lora_rank": 8}


def test_nonsense_that_python_cannot_parse_is_only_left_out(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps({"network_dim": 8, "optimizer_args": ["eps=" + "-" * 100_000 + "1"]}),
        encoding="utf-8",
    )
    assert import_settings(path).settings["lora_rank"] == 8
    lora = tmp_path / "x.safetensors"
    lora.write_bytes(
        safetensors.torch.save(
            {"lora_unet_a.lora_down.weight": torch.zeros(8, 4)},
            {
                "ss_learning_rate": "1e-4",
                "ss_optimizer": f"torch.optim.AdamW(eps={'-' * 100_000}1)",
            },
        )
    )
    assert import_settings(lora).settings["optimizer"] == "adamw"


def test_a_file_of_bad_values_only_says_what_is_wrong_with_the_first(tmp_path):
    (tmp_path / "bad.yaml").write_text("learning_rate: abc\nlora_rank: 0\n", encoding="utf-8")
    with pytest.raises(Refused, match="no settings that can be used.*learning_rate.*not a number"):
        import_settings(tmp_path / "bad.yaml")
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(Refused, match="no text in UTF-8"):
        import_settings(tmp_path / "picture.toml")


# --- What takes long ------------------------------------------------------------------------------

DOTTED = ".".join("a" * 20_000)
SLOW = {  # each took from one second to a minute
    "keys.yaml": "\n".join(f"key_{number}: 1" for number in range(20_000)),
    "keys.json": json.dumps({f"key_{number}": 1 for number in range(20_000)}),
    "list.yaml": "{a," + "a," * 60_000 + "}",
    "deep.yaml": "[" * 100_000,
    "number.yaml": "a: 1" + ":1" * 50_000,
    "number.json": f'{{"a": {"1" * 900_000}}}',
    "dotted.toml": f"{DOTTED} = 1",
    "quoted.toml": DOTTED.replace("a", '"a"') + " = 1",
    "inline.toml": f"x = {{{DOTTED} = 1}}",
    "section.toml": f"[{DOTTED}]",
    "subsets.json": json.dumps(
        {
            "general": {f"key_{number}": 1 for number in range(5_000)},
            "datasets": [{"subsets": [{}] * 40_000}],
        }
    ),
    "arguments.json": json.dumps(
        {
            "network_module": "networks.lora",
            "network_args": {f"key_{number}": 1 for number in range(80_000)},
        }
    ),
    "command.json": json.dumps(
        {
            "LoRA_type": "Standard",
            "additional_parameters": "".join(f"--a{number} " for number in range(100_000)),
        }
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_no_file_takes_long(tmp_path, name):
    (tmp_path / name).write_text(SLOW[name], encoding="utf-8")
    began = time.process_time()
    try:
        found = import_settings(tmp_path / name)
    except Refused as error:
        assert error.code in ("unreadable_config", "no_settings") and len(
            error.message
        ) < 400 + len(str(tmp_path))
    else:
        assert name == "command.json" and "additional_parameters" in left(found)
    assert time.process_time() - began < 1
