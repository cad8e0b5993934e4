"""Training states that a newer version has saved are kept, and not called damaged."""

import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.runs.resume import check_readable, state_folder
from lora_trainer.training import state_files
from lora_trainer.training.state_files import State


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = state_folder(tmp_path)
    state_files.save(folder, State(2, {"a": torch.ones(2)}, {"session": 1.0}), keep=3)
    with monkeypatch.context() as patched:
        patched.setattr(state_files, "FORMAT", state_files.FORMAT + 1)
        state_files.save(folder, State(4, {"a": torch.ones(2)}, {"session": 1.0}), keep=3)
    return folder


def test_a_newer_state_stays_and_the_one_before_is_read(folder, caplog):
    assert state_files.latest(folder).step == 2
    assert state_files.steps(folder) == [4, 2] and state_files.has_newer(folder)
    assert "step-000004.safetensors was saved by a newer version" in caplog.text


def test_newer_states_alone_are_no_damage(folder):
    (folder / "step-000002.safetensors").unlink()
    assert state_files.latest(folder) is None
    with pytest.raises(Refused, match="was saved by a newer version of Train LoRA"):
        check_readable(folder.parent, found=False, anyway=False)


def test_a_damaged_state_still_gets_another_ending(folder):
    (folder / "step-000004.safetensors").write_bytes(b"x" * 100)
    assert state_files.latest(folder).step == 2
    assert [path.name for path in folder.glob("*.damaged")] == ["step-000004.damaged"]
    assert not state_files.has_newer(folder)
