"""What may be written over, what is kept meanwhile, what is put back, and where a LoRA goes that
its folder refuses.
"""

import errno
import json
import os
import time

import pytest
from safetensors.torch import load_file

from lora_trainer.base.errors import Refused
from lora_trainer.runs import output_files
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.settings.config import TrainConfig
from tests.support.faults import failing, refuse_writes
from tests.support.stopped_runs import Killed, stop_at


@pytest.fixture
def config(settings):
    return TrainConfig.parse({**settings, "overwrite": True, "save_steps": 2, "preview": False})


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


def test_old_leftovers_beside_the_lora_are_removed(host, config, lora):
    for name, age in (("a" * 32, 2 * output_files.LEFTOVER_SECONDS), ("b" * 32, 0)):
        path = host.lora_dir / f".{name}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    train_lora(config, host)
    assert [path.name for path in host.lora_dir.glob(".*.tmp")] == [f".{'b' * 32}.tmp"]


def test_a_full_disk_ends_with_a_file_in_the_jobs_folder(host, settings, folder, monkeypatch):
    refuse_writes(monkeypatch, host.lora_dir)
    told = []
    result = train_lora(
        TrainConfig.parse({**settings, "save_steps": 2, "preview": False}),
        host,
        folder=folder,
        reporter=ProgressReporter(lambda progress: told.append(progress.warnings)),
    )
    assert (
        result.output_file == folder / "mine.safetensors"
        and load_file(result.output_file)
        and result.steps == 6
    )
    assert any(
        "No space left on device. Free some space" in remark
        and "tried again every half minute" in remark
        for remarks in told
        for remark in remarks
    )
    assert (
        max(map(len, told)) == 1 and len(result.warnings) == 1
    )  # the same trouble at every snapshot is one remark, and the end takes its place
    assert "So it was saved to" in result.warnings[0] and str(folder) in result.warnings[0]
    assert result.lora_tag == ""  # no prompt finds it there


def test_everything_full_ends_in_the_temporary_folder(
    host, settings, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    for where in (host.lora_dir, folder):
        refuse_writes(monkeypatch, where)
    result = train_lora(TrainConfig.parse({**settings, "preview": False}), host, folder=folder)
    assert result.output_file == tmp_path / "elsewhere" / "train-lora" / "mine.safetensors"
    assert any("The progress cannot be kept" in remark for remark in result.warnings)


def test_a_locked_file_gets_a_name_beside_it(host, settings, folder, monkeypatch):
    """As on Windows, while another program holds the LoRA open."""
    config = TrainConfig.parse({**settings, "overwrite": True, "preview": False})
    old = train_lora(config, host).output_file.read_bytes()
    replace = os.replace

    def locked(source, target):
        if os.fspath(target).endswith(os.sep + "mine.safetensors") and "Lora" in os.fspath(target):
            raise PermissionError(
                errno.EACCES,
                "The process cannot access the file because it is being used by another process",
            )
        return replace(source, target)

    monkeypatch.setattr(os, "replace", locked)
    result = train_lora(config, host, folder=folder)
    assert (
        result.output_file.name == "mine-2.safetensors"
        and result.lora_tag == "<lora:mine-2:0.8>"
        and host.registered[-1] == result.output_file
    )
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old


def test_a_failed_run_puts_back_what_its_snapshots_replaced(host, settings, folder, monkeypatch):
    config = TrainConfig.parse({**settings, "overwrite": True, "save_steps": 2})
    old = train_lora(config, host).output_file.read_bytes()
    monkeypatch.setattr(
        host.model, "predict", failing(host.model.predict, {5}, RuntimeError("injected"))
    )
    seen = []
    with pytest.raises(RuntimeError):
        train_lora(
            config.replace(seed=7),
            host,
            folder=folder,
            reporter=ProgressReporter(
                lambda progress: (
                    seen.append((host.lora_dir / "mine.safetensors").read_bytes() != old)
                    if progress.snapshots
                    else None
                )
            ),
        )
    assert seen and all(seen)  # the tag meant the newest snapshot
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old and host.registered[
        -1
    ] == host.lora_dir / "mine.safetensors"
