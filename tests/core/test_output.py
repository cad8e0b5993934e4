"""What may be written over, what is kept meanwhile, and what is put back."""
import json
import os
import time

import pytest
from safetensors import safe_open

from lora_trainer.core import output
from lora_trainer.core.config import TrainConfig
from lora_trainer.core.control import Control
from lora_trainer.core.errors import Refused
from lora_trainer.core.pipeline import train_lora


class Killed(BaseException):
    pass


@pytest.fixture
def config(settings):
    return TrainConfig.parse({**settings, "overwrite": True, "save_steps": 2, "preview": False})


@pytest.fixture
def lora(host):
    return host.lora_dir / "mine.safetensors"


def stop_at(step, error):
    def listen(progress):
        if progress.step == step and progress.stage == "training":
            raise error
    return listen


def test_a_failed_run_puts_back_lora_and_card(host, config, lora, tmp_path):
    train_lora(config, host)
    lora.with_suffix(".json").write_text(json.dumps({"notes": "my notes", "activation text": "old"}))
    before = lora.read_bytes(), lora.with_suffix(".json").read_bytes()
    with pytest.raises(RuntimeError):
        train_lora(config.replace(seed=7, trigger_word="new"), host, folder=tmp_path / "job", on_progress=stop_at(5, RuntimeError()))
    assert (lora.read_bytes(), lora.with_suffix(".json").read_bytes()) == before
    assert not list((tmp_path / "job" / "replaced").iterdir())


def test_notes_of_the_user_stay(host, config, lora):
    train_lora(config, host)
    assert json.loads(lora.with_suffix(".json").read_text())["notes"].startswith("Trained with Train LoRA")
    lora.with_suffix(".json").write_text(json.dumps({"notes": "my notes"}))
    train_lora(config, host)
    assert json.loads(lora.with_suffix(".json").read_text())["notes"] == "my notes"


def test_a_killed_run_that_is_refused_later_leaves_the_lora_of_another_job(host, config, lora, tmp_path):
    train_lora(config.replace(seed=1), host)
    with pytest.raises(Killed):
        train_lora(config.replace(seed=2), host, folder=tmp_path / "one", on_progress=stop_at(5, Killed()))
    train_lora(config.replace(seed=3), host, folder=tmp_path / "two")
    finished = lora.read_bytes()
    host.model.sha256 = "1" * 64
    with pytest.raises(Refused, match="has other weights than before"):
        train_lora(config.replace(seed=2), host, folder=tmp_path / "one", resume=True)
    assert lora.read_bytes() == finished


def test_more_epochs_that_fail_leave_the_finished_lora(host, config, lora, tmp_path):
    train_lora(config, host, folder=tmp_path / "job")
    finished = lora.read_bytes()
    with pytest.raises(RuntimeError):
        train_lora(config.replace(max_train_steps=20), host, folder=tmp_path / "job", resume=True, on_progress=stop_at(15, RuntimeError()))
    assert lora.read_bytes() == finished


@pytest.mark.parametrize("broken", ["register", "unlink"])
def test_what_fails_after_the_save_does_not_undo_it(host, config, lora, tmp_path, monkeypatch, broken):
    old = train_lora(config, host).output_file.read_bytes()

    def fail(*args, **kwargs):
        raise PermissionError("held open")
    if broken == "unlink":
        monkeypatch.setattr(type(lora), "unlink", fail)
    else:
        calls, register = [], host.register
        monkeypatch.setattr(host, "register", lambda path: (calls.append(path), fail() if len(calls) == 5 else register(path)))
    result = train_lora(config.replace(seed=7), host, folder=tmp_path / "job")
    assert result.output_file == lora and lora.read_bytes() != old
    assert (broken == "unlink") != any("could not be made known" in remark for remark in result.remarks)


def test_a_snapshot_does_not_write_over_another_runs(host, settings, lora):
    train_lora(TrainConfig.parse({**settings, "save_steps": 2}), host)
    lora.unlink()
    other = lora.with_name("mine-000002.safetensors")
    before, control = other.read_bytes(), Control()
    control.take_snapshot()
    train_lora(TrainConfig.parse({**settings, "seed": 9}), host, control=control, on_progress=lambda progress: control.take_snapshot() if progress.step == 2 else None)
    assert other.read_bytes() == before
    assert safe_open(lora.with_name("mine-000002-2.safetensors"), "pt").metadata()["ss_seed"] == "9"


def test_old_leftovers_beside_the_lora_are_removed(host, config, lora):
    for name, age in (("a" * 32, 2 * output.LEFTOVER_SECONDS), ("b" * 32, 0)):
        path = host.lora_dir / f".{name}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    train_lora(config, host)
    assert [path.name for path in host.lora_dir.glob(".*.tmp")] == [f".{'b' * 32}.tmp"]
