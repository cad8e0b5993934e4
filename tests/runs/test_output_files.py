"""What may be written over, what is kept meanwhile, and what is put back."""

import json
import os
import time

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
    lora.with_suffix(".json").write_text(
        json.dumps({"notes": "my notes", "activation text": "old"})
    )
    before = lora.read_bytes(), lora.with_suffix(".json").read_bytes()
    with pytest.raises(RuntimeError):
        train_lora(
            config.replace(seed=7, trigger_word="new"),
            host,
            folder=tmp_path / "job",
            reporter=ProgressReporter(stop_at(5, RuntimeError())),
        )
    assert (lora.read_bytes(), lora.with_suffix(".json").read_bytes()) == before
    assert not list((tmp_path / "job" / "replaced").iterdir())


def test_notes_of_the_user_stay(host, config, lora):
    train_lora(config, host)
    assert json.loads(lora.with_suffix(".json").read_text())["notes"].startswith(
        "Trained with Train LoRA"
    )
    lora.with_suffix(".json").write_text(json.dumps({"notes": "my notes"}))
    train_lora(config, host)
    assert json.loads(lora.with_suffix(".json").read_text())["notes"] == "my notes"


def test_a_killed_run_that_is_refused_later_leaves_the_lora_of_another_job(
    host, config, lora, tmp_path
):
    train_lora(config.replace(seed=1), host)
    with pytest.raises(Killed):
        train_lora(
            config.replace(seed=2),
            host,
            folder=tmp_path / "one",
            reporter=ProgressReporter(stop_at(5, Killed())),
        )
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
        train_lora(
            config.replace(max_train_steps=20),
            host,
            folder=tmp_path / "job",
            resume=True,
            reporter=ProgressReporter(stop_at(15, RuntimeError())),
        )
    assert lora.read_bytes() == finished


@pytest.mark.parametrize("broken", ["register", "unlink"])
def test_what_fails_after_the_save_does_not_undo_it(
    host, config, lora, tmp_path, monkeypatch, broken
):
    old = train_lora(config, host).output_file.read_bytes()

    def fail(*args, **kwargs):
        raise PermissionError("held open")

    if broken == "unlink":
        monkeypatch.setattr(type(lora), "unlink", fail)
    else:
        calls, register = [], host.register
        monkeypatch.setattr(
            host,
            "register",
            lambda path: (calls.append(path), fail() if len(calls) == 5 else register(path)),
        )
    result = train_lora(config.replace(seed=7), host, folder=tmp_path / "job")
    assert result.output_file == lora and lora.read_bytes() != old
    assert (broken == "unlink") != any(
        "could not be made known" in remark for remark in result.warnings
    )


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


def test_old_leftovers_beside_the_lora_are_removed(host, config, lora):
    for name, age in (("a" * 32, 2 * output_files.LEFTOVER_SECONDS), ("b" * 32, 0)):
        path = host.lora_dir / f".{name}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    train_lora(config, host)
    assert [path.name for path in host.lora_dir.glob(".*.tmp")] == [f".{'b' * 32}.tmp"]


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
