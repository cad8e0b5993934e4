"""Pictures besides a run's own, the place of its LoRA and of its job, and a run that draws all."""

import pytest
from PIL import Image

from lora_trainer.runs import output_files


@pytest.fixture
def others(tmp_path):
    """Two pictures for regularisation, one with its own caption."""
    folder = tmp_path / "reg" / "1_any_circle"
    folder.mkdir(parents=True)
    for name in ("r", "s"):
        Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
    (folder / "s.txt").write_text("a circle ||| grey")
    return folder.parent


@pytest.fixture
def lines(pictures):
    (pictures / "2.txt").write_text("a circle\n\n {red|blue} shape \n", encoding="utf-8")
    (pictures / "3.caption").write_text("kohya's", encoding="utf-8")
    return pictures


@pytest.fixture
def lora(host):
    return host.lora_dir / "mine.safetensors"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "job"


@pytest.fixture
def longer(settings):
    """A run that draws everything that can be drawn."""
    return {
        **settings,
        "max_train_steps": 12,
        "mirror": True,
        "random_crop": True,
        "lora_dropout": 0.2,
        "gradient_accumulation_steps": 2,
        "lr_warmup_steps": 3,
        "save_state_steps": 1,
        "preview": False,
    }


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    monkeypatch.setattr(output_files, "PAUSE_SECONDS", 0.01)
