"""A disk that refuses is tried again every half minute, also while a run is paused."""

import pytest

from lora_trainer.base.control import Control
from lora_trainer.base.errors import ErrorCode, Refused
from lora_trainer.lora import save
from lora_trainer.runs import give_way
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.settings.config import TrainConfig
from lora_trainer.training import state_files

POLLS = 6


@pytest.fixture
def paused(host, monkeypatch):
    """Let a run be paused after step 2, and asked so many times whether it may go on."""
    monkeypatch.setattr(give_way, "LOOK_AGAIN_SECONDS", 0.0)
    control, polls = Control(), []

    def waits(*, until, on_wait, should_stop):
        for _ in range(POLLS):
            polls.append(1)
            assert not until()
        control.resume()
        return True

    monkeypatch.setattr(host, "give_way", waits)

    def on_step(metrics, status):
        if metrics.step == 2:
            control.pause()

    return control, ProgressReporter(on_step=on_step), polls


def test_a_failing_disk_is_left_alone_while_paused(host, settings, paused, tmp_path, monkeypatch):
    control, reporter, polls = paused
    states, snapshots = [], []

    def no_state(*args, **kwargs):
        states.append(1)
        raise OSError(28, "No space left on device")

    def no_lora(path, *args, original=save.save):
        if "-0000" not in path.name:
            return original(path, *args)
        snapshots.append(path)
        raise Refused("No space left on device.", code=ErrorCode.CANNOT_SAVE)

    monkeypatch.setattr(state_files, "save", no_state)
    monkeypatch.setattr(save, "save", no_lora)
    config = TrainConfig.parse({**settings, "save_steps": 2, "preview": False})
    train_lora(config, host, control=control, reporter=reporter, folder=tmp_path / "job")
    assert len(polls) == POLLS
    assert len(states) <= 2, "once, and at the end"
    assert len(snapshots) == 1


def test_an_interrupted_run_says_how_far_it_is(host, settings, tmp_path):
    control = Control()

    def on_step(metrics, status):
        if metrics.step == 3:
            control.interrupt()

    reporter = ProgressReporter(on_step=on_step)
    reporter.warn("something of the run")
    config = TrainConfig.parse({**settings, "preview": False})
    result = train_lora(config, host, control=control, reporter=reporter, folder=tmp_path / "job")
    assert result.stopped and result.output_file is None and result.steps == 3
    assert result.loss_average == reporter.status.loss_average is not None
    assert "something of the run" in result.warnings
