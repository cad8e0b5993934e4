"""Training states of a run on disk: saved as asked for, few kept, gone back to."""

import json
from types import SimpleNamespace

import pytest

from lora_trainer.runs import saved_states
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.runs.resume import state_folder, state_step
from lora_trainer.settings.config import TrainConfig
from lora_trainer.training import state_files
from tests.support.faults import refuse_writes
from tests.support.stopped_runs import assert_same, run_until, weights_of


def test_states_in_between_may_be_older_than_the_kill(host, longer, folder):
    """Steps after the last state are taken again, and are the same."""
    config = TrainConfig.parse({**longer, "save_state_steps": 5})
    train_lora(config.replace(output_name="whole"), host)
    run_until(9, config, host, folder)
    for path in state_folder(folder).glob(
        "step-*9.safetensors"
    ):  # written on the way out, which a kill would not do
        path.unlink()
    assert state_step(folder) == 5
    train_lora(config, host, folder=folder, resume=True)
    assert_same(weights_of(host, "whole"), weights_of(host))


def test_a_damaged_state_is_passed_over(host, longer, folder):
    config = TrainConfig.parse(longer)
    train_lora(config.replace(output_name="whole"), host)
    run_until(7, config, host, folder)
    newest = state_folder(folder) / "step-000007.safetensors"
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1
    newest.write_bytes(data)
    assert state_files.latest(state_folder(folder)).step == 6
    train_lora(config, host, folder=folder, resume=True)
    assert_same(weights_of(host, "whole"), weights_of(host))


def test_states_are_pruned_and_hold_no_pickle(host, longer, folder):
    train_lora(TrainConfig.parse({**longer, "keep_states": 3}), host, folder=folder)
    names = sorted(path.name for path in state_folder(folder).iterdir())
    assert names == [
        "step-000010.safetensors",
        "step-000011.safetensors",
        "step-000012.safetensors",
    ]
    header = (state_folder(folder) / names[0]).read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert json.loads(json.loads(header[8 : 8 + size])["__metadata__"]["facts"])["step"] == 10


def test_leftovers_of_a_killed_save_are_removed(host, longer, folder):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    (state_folder(folder) / f".{'a' * 32}.tmp").write_bytes(b"half a state")
    train_lora(config, host, folder=folder, resume=True)
    assert not list(state_folder(folder).glob(".*"))


def test_a_disk_that_recovers_is_used_again(host, settings, folder, monkeypatch):
    monkeypatch.setattr("lora_trainer.runs.retry.RETRY_SECONDS", 0.0)
    tried = refuse_writes(monkeypatch, state_folder(folder), times=2)
    train_lora(TrainConfig.parse(settings), host, folder=folder)
    assert len(tried) == 2 and state_files.latest(state_folder(folder)).step == 6


@pytest.mark.parametrize("minutes, expected", [(1, [3, 6, 8]), (2, [5, 8]), (0, [8])], ids=str)
def test_states_are_saved_by_the_clock(host, settings, folder, monkeypatch, minutes, expected):
    """A step takes 25 seconds by this clock. The beginning and the end are saved anyway."""
    clock, saved = SimpleNamespace(now=0.0), [0]

    def listen(progress):
        clock.now = 25.0 * progress.step
        if progress.state_step != saved[-1]:
            saved.append(progress.state_step)

    monkeypatch.setattr(saved_states, "time", SimpleNamespace(monotonic=lambda: clock.now))
    changes = {"save_state_minutes": minutes, "save_state_steps": 0, "max_train_steps": 8}
    config = TrainConfig.parse({**settings, **changes, "preview": False})
    train_lora(config, host, folder=folder, reporter=ProgressReporter(listen))
    assert saved[1:] == expected
