"""Between two steps a run waits: for its checkpoint, for the user, for pictures of others."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.base.contracts import CheckpointId
from lora_trainer.base.control import Control
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.runs.resume import state_step
from lora_trainer.settings.config import TrainConfig
from tests.support.base_models import assert_untouched, state_of
from tests.support.faults import OUT_OF_MEMORY, failing
from tests.support.stopped_runs import run_until


@pytest.mark.parametrize(
    "name, sha256, waits",
    [
        ("tiny", None, False),
        ("renamed", "0" * 64, False),
        ("other", "1" * 64, True),
        ("other", None, True),
    ],
)
def test_a_run_from_the_queue_waits_for_its_checkpoint(host, settings, name, sha256, waits):
    host.changes_checkpoints, host.status = True, dataclasses.replace(host.status, sha256="0" * 64)
    control, told = Control(), []

    def listen(progress):
        told.append(progress.waiting_for)
        if told.count("checkpoint") == 2:
            control.stop()

    result = train_lora(
        TrainConfig.parse(settings),
        host,
        control=control,
        reporter=ProgressReporter(listen),
        checkpoint=CheckpointId(name, sha256),
    )
    assert result.stopped == waits == ("checkpoint" in told)


def test_where_users_load_others_a_resumed_run_waits_for_its_checkpoint(
    host, longer, folder, monkeypatch
):
    config, control, told = TrainConfig.parse(longer), Control(), []
    run_until(4, config, host, folder)
    host.changes_checkpoints, mine = True, host.status
    host.status = dataclasses.replace(mine, checkpoint="other")

    def listen(progress):
        told.append((progress.stage, progress.message, progress.step))
        if len(told) == 4:
            host.status = mine

    assert (
        train_lora(
            config, host, folder=folder, resume=True, reporter=ProgressReporter(listen)
        ).steps
        == 12
    )
    assert ("paused", "Paused: waiting for the checkpoint tiny; other is loaded.", 4) in told
    host.status = dataclasses.replace(mine, checkpoint="other")
    stopped = train_lora(
        config.replace(max_train_steps=20),
        host,
        folder=folder,
        resume=True,
        control=control,
        reporter=ProgressReporter(lambda progress: control.stop()),
    )
    assert stopped.stopped and stopped.steps == 12


def test_pause_frees_the_model_and_goes_on(host, settings, folder, monkeypatch):
    config, control, seen = TrainConfig.parse(settings), Control(), []
    train_lora(config.replace(output_name="plain"), host)
    plain = state_of(host.model.unet)
    give_way = host.give_way

    def look(**options):
        seen.append(
            (
                state_step(folder),
                type(host.model.unet.get_submodule("input_blocks.1.1.proj_in")) is torch.nn.Conv2d,
            )
        )
        control.resume()
        return give_way(**options)

    monkeypatch.setattr(host, "give_way", look)
    told = []
    train_lora(
        config,
        host,
        folder=folder,
        control=control,
        reporter=ProgressReporter(
            lambda progress: (
                told.append((progress.stage, progress.waiting_for)),
                control.pause() if progress.step == 2 else None,
            )
        ),
    )
    assert seen[0] == (2, True) and ("paused", "user") in told
    assert_untouched(plain, host.model.unet)
    one, other = (
        load_file(host.lora_dir / "plain.safetensors"),
        load_file(host.lora_dir / "mine.safetensors"),
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_pause_that_is_asked_for_while_a_picture_is_drawn(host, settings, folder, monkeypatch):
    """It is told, the progress is kept, memory is freed and a snapshot can be had, before the
    picture is done.
    """
    control, told, seen = Control(), [], []

    def give_way(*, until, on_wait, should_stop):
        host.waiting = False
        control.pause(free_memory=True)
        control.take_snapshot()
        assert not until() and not until()
        seen.append(
            (
                state_step(folder),
                sorted(path.name for path in host.lora_dir.glob("mine*.safetensors")),
            )
        )
        control.resume()
        return until()

    monkeypatch.setattr(host, "give_way", give_way)

    def listen(progress):
        told.append((progress.stage, progress.waiting_for, progress.message))
        host.waiting = progress.step == 3 and not seen

    train_lora(
        TrainConfig.parse(settings),
        host,
        folder=folder,
        control=control,
        reporter=ProgressReporter(listen),
    )
    assert (
        seen == [(3, ["mine-000003.safetensors", "mine.safetensors"])]
        and ("paused", "user", "Paused.") in told
    )
    assert told[-1][0] != "paused"


def test_memory_that_runs_out_on_coming_back_from_a_picture(host, settings, folder, monkeypatch):
    from lora_trainer.training.model_patches import ModelPatches

    monkeypatch.setattr(
        ModelPatches,
        "apply",
        failing(ModelPatches.apply, {2}, torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)),
    )
    result = train_lora(
        TrainConfig.parse(settings),
        host,
        folder=folder,
        reporter=ProgressReporter(lambda progress: setattr(host, "waiting", progress.step == 3)),
    )
    assert result.steps == 6 and "gradient checkpointing" in result.warnings[0]


def test_exclusive_does_not_give_way(host, settings):
    for sharing, times in (("exclusive", 0), ("share", 1)):
        host.waiting, host.gave_way = True, 0
        train_lora(
            TrainConfig.parse({**settings, "sharing": sharing, "output_name": sharing}), host
        )
        assert host.gave_way == times
