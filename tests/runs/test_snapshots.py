"""Snapshots of a run: when, under which names, and which are kept."""

import pytest
from PIL import Image
from safetensors import safe_open

from lora_trainer.base.control import Control
from lora_trainer.base.errors import Refused
from lora_trainer.runs import output_files
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.plan import make_plan
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.settings.config import TrainConfig
from tests.support.stopped_runs import Killed, stop_at


def test_a_snapshot_does_not_write_over_another_runs(host, settings, lora):
    train_lora(TrainConfig.parse({**settings, "save_steps": 2}), host)
    lora.unlink()
    other = lora.with_name("mine-000002.safetensors")
    before, control = other.read_bytes(), Control()
    control.take_snapshot()
    train_lora(
        TrainConfig.parse({**settings, "seed": 9}),
        host,
        control=control,
        reporter=ProgressReporter(
            lambda progress: control.take_snapshot() if progress.step == 2 else None
        ),
    )
    assert other.read_bytes() == before
    assert safe_open(lora.with_name("mine-000002-2.safetensors"), "pt").metadata()["ss_seed"] == "9"


def names_of(host):
    return sorted(path.name for path in host.lora_dir.iterdir())


def test_snapshots_by_epochs_and_by_steps_are_named_by_their_step(host, settings):
    config = TrainConfig.parse(
        {
            **settings,
            "save_steps": 5,
            "save_every_n_epochs": 1,
            "max_train_steps": 9,
            "preview": False,
        }
    )
    seen = []
    train_lora(
        config, host, reporter=ProgressReporter(lambda progress: seen.append(progress.snapshots))
    )
    epoch_steps = make_plan(
        config.replace(overwrite=True), lora_dir=host.lora_dir
    ).schedule.steps_per_epoch
    assert epoch_steps == 4
    assert seen[-1] == ("mine-000004", "mine-000005", "mine-000008")
    assert {f"{name}.safetensors" for name in seen[-1]} < set(names_of(host))


def test_only_the_newest_snapshots_of_this_run_are_kept(host, settings):
    train_lora(
        TrainConfig.parse({**settings, "save_steps": 2, "preview": False}), host
    )  # another run's: 2 and 4
    others = {path.name: path.read_bytes() for path in host.lora_dir.iterdir()}
    Image.new("RGB", (32, 32)).save(host.lora_dir / "two-000003.png")  # the user's own
    config = TrainConfig.parse(
        {
            **settings,
            "output_name": "two",
            "save_steps": 1,
            "keep_snapshots": 2,
            "max_train_steps": 9,
            "preview": False,
        }
    )
    seen = []
    train_lora(
        config, host, reporter=ProgressReporter(lambda progress: seen.append(progress.snapshots))
    )
    assert {name: (host.lora_dir / name).read_bytes() for name in others} == others
    assert seen[-1] == ("two-000007", "two-000008")
    assert [name for name in names_of(host) if name.startswith("two-")] == [
        "two-000003.png",
        "two-000007.json",
        "two-000007.safetensors",
        "two-000008.json",
        "two-000008.safetensors",
    ]


def test_snapshots_that_were_asked_for_and_those_of_others_stay(host, settings, lora):
    host.lora_dir.mkdir(exist_ok=True, parents=True)
    control = Control()
    seen = []

    def listen(progress):
        seen.append(progress.snapshots)
        if progress.step == 3 and progress.stage == "training":
            control.take_snapshot()
        if progress.step == 5 and (mine := host.lora_dir / "mine-000004.safetensors").exists():
            mine.write_bytes(b"somebody else's by now")

    train_lora(
        TrainConfig.parse(
            {
                **settings,
                "save_steps": 2,
                "keep_snapshots": 1,
                "max_train_steps": 9,
                "preview": False,
            }
        ),
        host,
        control=control,
        reporter=ProgressReporter(listen),
    )
    assert seen[-1] == ("mine-000003", "mine-000004", "mine-000008")
    assert (host.lora_dir / "mine-000004.safetensors").read_bytes() == b"somebody else's by now"
    assert not (host.lora_dir / "mine-000006.safetensors").exists()


def test_a_run_that_goes_on_removes_what_it_saved_before(host, settings, tmp_path):
    config = TrainConfig.parse(
        {
            **settings,
            "save_steps": 2,
            "keep_snapshots": 1,
            "save_state_steps": 1,
            "max_train_steps": 9,
            "preview": False,
        }
    )
    with pytest.raises(Killed):
        train_lora(
            config, host, folder=tmp_path / "job", reporter=ProgressReporter(stop_at(6, Killed()))
        )
    assert [path.stem for path in host.lora_dir.glob("mine-*.safetensors")] == ["mine-000004"]
    seen = []
    train_lora(
        config,
        host,
        folder=tmp_path / "job",
        resume=True,
        reporter=ProgressReporter(lambda progress: seen.append(progress.snapshots)),
    )
    assert [path.stem for path in host.lora_dir.glob("mine-*.safetensors")] == [
        "mine-000008"
    ] and seen[-1] == ("mine-000008",)


def test_an_old_snapshot_that_cannot_be_removed_is_removed_later(host, settings, monkeypatch):
    tried = []

    def refuse_once(path):
        tried.append(path.stem)
        if len(tried) == 1:
            raise PermissionError("held open")
        remove(path)

    remove = output_files.remove_lora
    monkeypatch.setattr(output_files, "remove_lora", refuse_once)
    train_lora(
        TrainConfig.parse(
            {
                **settings,
                "save_steps": 2,
                "keep_snapshots": 1,
                "max_train_steps": 9,
                "preview": False,
            }
        ),
        host,
    )
    assert tried == ["mine-000002", "mine-000002", "mine-000004", "mine-000006"]
    assert [path.stem for path in host.lora_dir.glob("mine-*.safetensors")] == ["mine-000008"]


def test_epoch_snapshots_of_an_earlier_run_are_not_mixed_up_with(host, settings, lora):
    train_lora(TrainConfig.parse({**settings, "save_steps": 2, "preview": False}), host)
    lora.unlink()
    with pytest.raises(Refused, match="mine-000002.*mixed up"):
        train_lora(TrainConfig.parse({**settings, "save_every_n_epochs": 1}), host)


def test_snapshots(host, settings):
    train_lora(TrainConfig.parse({**settings, "save_steps": 2}), host)
    assert sorted(path.name for path in host.lora_dir.glob("*.safetensors")) == [
        "mine-000002.safetensors",
        "mine-000004.safetensors",
        "mine.safetensors",
    ]
    with safe_open(host.lora_dir / "mine-000004.safetensors", "pt") as file:
        assert (
            file.metadata()["ss_output_name"] == "mine-000004"
            and file.metadata()["ss_steps"] == "4"
        )


def test_a_snapshot_on_demand(host, settings, folder):
    control = Control()
    told = []
    train_lora(
        TrainConfig.parse(settings),
        host,
        folder=folder,
        control=control,
        reporter=ProgressReporter(
            lambda progress: (
                told.append(progress.snapshots),
                control.take_snapshot() if progress.step == 2 and not progress.snapshots else None,
            )
        ),
    )
    assert (host.lora_dir / "mine-000002.safetensors").is_file() and told[-1] == ("mine-000002",)
