"""The file as other programs read it."""
import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.core import export
from lora_trainer.core.errors import Refused


def tensors(dtype=torch.float32):
    return export.to_tensors({"a.b": (torch.randn(4, 8), torch.randn(6, 4))}, alphas={"a.b": 2.0}, export_name=lambda path: "lora_unet_" + path.replace(".", "_"),
                             dtype=dtype)


def test_kohya_layout():
    made = tensors(torch.float16)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in made.items()} == {
        "lora_unet_a_b.lora_down.weight": ((4, 8), torch.float16), "lora_unet_a_b.lora_up.weight": ((6, 4), torch.float16),
        "lora_unet_a_b.alpha": ((), torch.float32)}
    assert made["lora_unet_a_b.alpha"].item() == 2.0


def test_hash_is_of_everything_after_the_header(tmp_path):
    export.save(tmp_path / "x.safetensors", tensors(), {"ss_output_name": "x"})
    data = (tmp_path / "x.safetensors").read_bytes()
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        written = file.metadata()
    assert written["sshs_model_hash"] == hashlib.sha256(data[int.from_bytes(data[:8], "little") + 8:]).hexdigest()
    assert written["ss_output_name"] == "x" and len(written["sshs_legacy_hash"]) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_never_a_file_with_infinite_weights(bad):
    with pytest.raises(Refused, match="not finite"):
        export.to_tensors({"a": (torch.full((1, 1), bad), torch.ones(1, 1))}, alphas={"a": 1}, export_name=str)


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    export.save(path, tensors(), {})
    before = path.read_bytes()
    monkeypatch.setattr("lora_trainer.core.captions.os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Refused, match="No space left on device.*Free some space"):
        export.save(path, tensors(), {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_card_keeps_what_other_tools_wrote(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"negative text": "blurry", "activation text": "old"}), encoding="utf-8")
    export.save_card(tmp_path / "x.safetensors", family="sd1", trigger_word="猫", preferred_weight=0.7, notes="n")
    card = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert card == {"negative text": "blurry", "activation text": "猫", "preferred weight": 0.7, "sd version": "SD1", "notes": "n"}


def test_written_file_reads_back(tmp_path):
    made = tensors()
    export.save(tmp_path / "sub" / "ü 猫.safetensors", made, {})
    assert all(torch.equal(made[name], tensor) for name, tensor in load_file(tmp_path / "sub" / "ü 猫.safetensors").items())
