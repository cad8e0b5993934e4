"""Training states on disk: whole or not there, few, and found again."""

import os

import pytest
import torch

from lora_trainer.training import state_files
from lora_trainer.training.state_files import State


def state(step, **facts):
    tensors = {
        "weights": torch.full((2, 3), float(step)).mT,
        "half": torch.tensor([step], dtype=torch.bfloat16),
        "number": torch.tensor(step),
    }
    return State(step, tensors, {"session": 1.5, **facts})


def save(folder, *steps, keep=9):
    for step in steps:
        state_files.save(folder, state(step), keep=keep)


def test_a_state_comes_back_as_it_was(tmp_path):
    folder = tmp_path / "new" / "states"
    path = state_files.save(folder, state(7, names=["猫", None]), keep=1)
    assert path.name == "step-000007.safetensors"
    found = state_files.latest(folder)
    assert found.step == 7 and found.facts == {"session": 1.5, "names": ["猫", None], "step": 7}
    assert found.tensors.keys() == state(7).tensors.keys()
    for name, tensor in state(7).tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    found.free_tensors()
    assert not found.tensors and found.step == 7
    assert state_files.latest_facts(folder) == found.facts


def test_steps_are_numbers_and_not_names(tmp_path):
    save(tmp_path, 9, 1_000_000, 20)
    (tmp_path / "step-30.safetensors").write_bytes(b"")
    (tmp_path / "step-x.safetensors").write_bytes(b"")
    (tmp_path / "step-000040.damaged").write_bytes(b"")
    assert state_files.steps(tmp_path) == [1_000_000, 30, 20, 9]
    assert state_files.steps(tmp_path / "not there") == []


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert state_files.steps(tmp_path) == [4, 3]


def test_what_was_written_last_stays_though_its_step_is_lower(tmp_path):
    save(tmp_path, 8, 9)
    save(tmp_path, 3, keep=1)
    assert state_files.steps(tmp_path) == [9, 3]


def spoil(path):
    """Change a byte of a tensor, as a disk does that fails."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [spoil, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 300)],
    ids=["changed", "empty", "cut"],
)
def test_a_damaged_state_is_passed_over_and_kept_under_another_ending(tmp_path, damage):
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-000002.safetensors")
    assert state_files.latest(tmp_path).step == 1
    assert sorted(os.listdir(tmp_path)) == ["step-000001.safetensors", "step-000002.damaged"]


@pytest.mark.parametrize("number", [1, 3])
def test_a_state_of_another_format_is_not_taken(tmp_path, monkeypatch, number):
    save(tmp_path, 1)
    monkeypatch.setattr(state_files, "FORMAT", number)
    assert state_files.latest_facts(tmp_path) is None and state_files.latest(tmp_path) is None


def test_without_a_state_there_is_none(tmp_path):
    assert state_files.latest(tmp_path) is None and state_files.latest_facts(tmp_path) is None
    assert state_files.latest(tmp_path / "not there") is None


def test_a_disk_that_refuses_removes_nothing(tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError("disk full")

    save(tmp_path, 1, 2)
    monkeypatch.setattr(state_files, "write_atomically", refuse)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 3, keep=1)
    assert state_files.steps(tmp_path) == [2, 1]


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / f".{'0' * 32}.tmp").write_bytes(b"half of a state")
    assert state_files.latest(tmp_path) is None and not os.listdir(tmp_path)
