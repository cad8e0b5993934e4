"""The file as other programs read it."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.base.errors import Refused
from lora_trainer.lora import save


def named(path):
    return "lora_" + path.replace(".", "_")


def tensors(dtype=torch.float32):
    return save.to_tensors(
        {"unet.a": {"lora_down.weight": torch.randn(4, 8), "lora_up.weight": torch.randn(6, 4)}},
        alphas={"unet.a": 2.0},
        export_name=named,
        dtype=dtype,
    )


def test_kohya_layout():
    made = tensors(torch.float16)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in made.items()} == {
        "lora_unet_a.lora_down.weight": ((4, 8), torch.float16),
        "lora_unet_a.lora_up.weight": ((6, 4), torch.float16),
        "lora_unet_a.alpha": ((), torch.float32),
    }
    assert made["lora_unet_a.alpha"].item() == 2.0


def test_other_kinds_keep_their_parts_names():
    weights = {
        "unet.a": {
            "lokr_w1": torch.ones(2, 2),
            "lokr_w2_a": torch.ones(3, 1),
            "lokr_w2_b": torch.ones(1, 4),
        },
        "te1.b": {"hada_w1_a": torch.ones(2, 1)},
    }
    made = save.to_tensors(
        weights, alphas={"unet.a": 1.0, "te1.b": 0.5}, export_name=named, dtype=torch.bfloat16
    )
    assert set(made) == {
        "lora_unet_a.lokr_w1",
        "lora_unet_a.lokr_w2_a",
        "lora_unet_a.lokr_w2_b",
        "lora_unet_a.alpha",
        "lora_te1_b.hada_w1_a",
        "lora_te1_b.alpha",
    }
    assert (
        made["lora_unet_a.lokr_w1"].dtype == torch.bfloat16
        and made["lora_te1_b.alpha"].item() == 0.5
    )


def test_magnitudes_of_a_dora_keep_their_digits():
    """bfloat16 would be off by up to 0.4 %, in everything that the model knows of an input."""
    scale = torch.rand(1, 8) + 1
    made = save.to_tensors(
        {"unet.a": {"lora_down.weight": torch.ones(2, 8), "dora_scale": scale}},
        alphas={"unet.a": 1.0},
        export_name=named,
        dtype=torch.bfloat16,
    )
    assert (
        torch.equal(made["lora_unet_a.dora_scale"], scale)
        and made["lora_unet_a.lora_down.weight"].dtype == torch.bfloat16
    )


def test_hash_is_of_everything_after_the_header(tmp_path):
    save.save(tmp_path / "x.safetensors", tensors(), {"ss_output_name": "x"})
    data = (tmp_path / "x.safetensors").read_bytes()
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        written = file.metadata()
    assert (
        written["sshs_model_hash"]
        == hashlib.sha256(data[int.from_bytes(data[:8], "little") + 8 :]).hexdigest()
    )
    assert written["ss_output_name"] == "x" and len(written["sshs_legacy_hash"]) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_never_a_file_with_infinite_weights(bad):
    with pytest.raises(Refused, match="not finite"):
        save.to_tensors(
            {
                "a": {
                    "lora_down.weight": torch.full((1, 1), bad),
                    "lora_up.weight": torch.ones(1, 1),
                }
            },
            alphas={"a": 1},
            export_name=str,
        )


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save.save(path, tensors(), {})
    before = path.read_bytes()
    monkeypatch.setattr(
        "lora_trainer.base.files.os.fsync",
        lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(Refused, match="No space left on device.*Free some space"):
        save.save(path, tensors(), {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_card_keeps_what_other_tools_wrote(tmp_path):
    (tmp_path / "x.json").write_text(
        json.dumps({"negative text": "blurry", "activation text": "old"}), encoding="utf-8"
    )
    save.save_card(
        tmp_path / "x.safetensors", family="sd1", trigger_word="猫", preferred_weight=0.7, notes="n"
    )
    card = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert card == {
        "negative text": "blurry",
        "activation text": "猫",
        "preferred weight": 0.7,
        "sd version": "SD1",
        "notes": "n",
    }


def test_written_file_reads_back(tmp_path):
    made = tensors()
    save.save(tmp_path / "sub" / "ü 猫.safetensors", made, {})
    assert all(
        torch.equal(made[name], tensor)
        for name, tensor in load_file(tmp_path / "sub" / "ü 猫.safetensors").items()
    )


CARD = {"activation text": "old", "notes": "my own", "sd version": "SDXL"}


def write_card(folder):
    save.save_card(
        folder / "x.safetensors", family="sd1", trigger_word="猫", preferred_weight=0.7, notes="n"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_a_card_in_another_encoding_keeps_what_it_says(tmp_path, encoding):
    written = json.dumps({**CARD, "description": "一只黑色的小猫"}, ensure_ascii=False)
    (tmp_path / "x.json").write_text(written, encoding=encoding)
    write_card(tmp_path)
    card = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert card["description"] == "一只黑色的小猫" and card["notes"] == "my own"
    assert card["activation text"] == "猫"


@pytest.mark.parametrize("content", ["[1, 2]", "my notes of this LoRA", '{"notes": "cut o'])
def test_a_file_that_is_no_card_is_left_as_it_is(tmp_path, content, caplog):
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    write_card(tmp_path)
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == content
    assert "x.json is no card" in caplog.text


def test_a_card_that_cannot_be_read_now_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text(json.dumps(CARD), encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(
            "pathlib.Path.read_bytes",
            lambda self: (_ for _ in ()).throw(PermissionError(13, "held open")),
        )
        with pytest.raises(OSError, match="held open"):
            write_card(tmp_path)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == CARD
    (tmp_path / "x.json").write_bytes(b"")  # of a write that was broken off
    write_card(tmp_path)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["notes"] == "n"
