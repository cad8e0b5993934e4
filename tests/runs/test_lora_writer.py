"""The LoRA of a run as it is written, with its card."""

import json

import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.settings.config import TrainConfig


def test_the_negative_prompt_is_written_into_the_card_and_an_empty_one_leaves_it(
    host, settings, lora
):
    train_lora(
        TrainConfig.parse(
            {**settings, "negative_text": "blurry, 模糊", "preview": False, "save_steps": 4}
        ),
        host,
    )
    for name in ("mine", "mine-000004"):
        card = json.loads((host.lora_dir / f"{name}.json").read_text(encoding="utf-8"))
        assert card["negative text"] == "blurry, 模糊"
    train_lora(TrainConfig.parse({**settings, "overwrite": True, "preview": False}), host)
    assert (
        json.loads(lora.with_suffix(".json").read_text(encoding="utf-8"))["negative text"]
        == "blurry, 模糊"
    )


def test_no_file_with_numbers_that_are_not_finite(host, settings, monkeypatch):
    """Weights too large for the file's type are refused, and what was there stays."""
    config = TrainConfig.parse({**settings, "save_precision": "fp16", "overwrite": True})
    old = train_lora(config, host).output_file.read_bytes()
    step = torch.optim.AdamW.step

    def huge(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        with torch.no_grad():
            self.param_groups[0]["params"][1].fill_(1e6)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", huge)
    with pytest.raises(Refused, match="not finite"):
        train_lora(config.replace(max_train_steps=1), host)
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old


def test_what_does_not_read_back_is_no_file(host, settings, tmp_path, monkeypatch):
    config = TrainConfig.parse({**settings, "overwrite": True})
    old = train_lora(config, host).output_file.read_bytes()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(
        "pathlib.Path.read_bytes",
        lambda self, original=type(tmp_path).read_bytes: (
            original(self)[:-1] + b"?" if self.suffix == ".tmp" else original(self)
        ),
    )
    with pytest.raises(Refused, match="does not read back"):
        train_lora(config, host)
    monkeypatch.undo()
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old
