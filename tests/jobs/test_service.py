"""Jobs as a page sees them: their states, what is refused, and what a restart finds."""

import time

import pytest

from lora_trainer.base.contracts import ModelStatus
from lora_trainer.base.errors import Refused
from lora_trainer.jobs.metrics import read_metrics
from lora_trainer.jobs.service import TrainingService
from tests.support.waiting import until


def test_a_job_runs_to_its_end(service, settings):
    job_id = service.start(settings)
    job = service.wait(job_id, timeout=60)
    assert (job["state"], job["step"], job["total_steps"], job["lora_tag"], job["error"]) == (
        "finished",
        6,
        6,
        "<lora:mine:0.8>",
        None,
    )
    assert [row["step"] for row in service.metrics(job_id, since=2)] == [3, 4, 5, 6]
    log = (service.job_folder(job_id) / "log.txt").read_text(encoding="utf-8")
    assert (
        "first step done" in log
        and "is ready" in log
        and (service.job_folder(job_id) / "config.yaml").is_file()
    )


def test_a_job_that_ends_while_its_row_is_read_has_ended(service, settings, monkeypatch):
    """The row was read when the job still ran; it must not be told as if it ran on."""
    job_id, read = service.start(settings), service.store.get

    def get_and_let_it_end(wanted):
        row = read(wanted)
        service.queue.wait(job_id, timeout=60)
        until(lambda: service.queue.running is None)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "get", get_and_let_it_end)
        job = service.job(job_id)
    assert (job["state"], job["step"]) == ("finished", 6)


def test_stop_saves_and_says_where(service, settings):
    job_id = service.start({**settings, "max_train_steps": 100_000})
    assert service.current_job()["id"] == job_id
    while not service.job(job_id)["step"]:
        time.sleep(0.01)
    assert service.stop(job_id)["stopping"]
    job = service.wait(job_id, timeout=60)
    assert (
        job["state"] == "stopped"
        and job["lora_tag"]
        and 0 < job["step"] < 100_000
        and service.current_job() is None
    )
    assert (job["ended_at"], job["resumable"], job["resume_step"], job["position"]) == (
        job["finished_at"],
        True,
        job["step"],
        None,
    )


def test_a_failure_is_told_and_the_next_job_runs(service, settings, host, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(host.model, "predict", lambda *args: 1 / 0)
        job = service.wait(service.start(settings), timeout=60)
    assert (
        job["state"] == "failed"
        and "ZeroDivisionError" in job["error"]
        and "log.txt" in job["error"]
        and not job["output_file"]
    )
    assert service.wait(service.start(settings), timeout=60)["state"] == "finished"


def test_out_of_memory_says_what_to_do(service, settings, host, monkeypatch):
    def full(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(host.model, "predict", full)
    assert "lower the resolution" in service.wait(service.start(settings), timeout=60)["error"]


def test_restart_finds_the_interrupted_job_and_old_metrics(service, settings, host):
    done = service.start(settings)
    service.wait(done, timeout=60)
    lost = service.store.add("lost", {})
    service.store.update(lost, state="training", progress={"step": 3})
    again = TrainingService(host)
    assert (
        again.job(lost)["state"] == "interrupted"
        and again.job(lost)["step"] == 3
        and again.job(lost)["resumable"]
    )
    assert again.metrics(done) == service.metrics(done) and [job["id"] for job in again.jobs()] == [
        lost,
        done,
    ]


def test_refused_before_the_model_is_touched(service, settings, host):
    host.status = ModelStatus(False, "No checkpoint is loaded.")
    with pytest.raises(Refused, match="No checkpoint is loaded"):
        service.start(settings)
    assert (
        service.planner.plan(settings)["errors"][0]["code"] == "not_trainable"
        and service.jobs() == []
    )


def test_what_is_kept_out_of_training_is_measured_and_told(service, settings):
    job_id = service.start(
        {
            **settings,
            "max_train_steps": 5,
            "validation_split": 0.3,
            "validate_every": 2,
            "preview": False,
        }
    )
    job = service.wait(job_id, timeout=60)
    rows = service.metrics(job_id)
    measured = {
        row["step"]: row["validation_loss"] for row in rows if row["validation_loss"] is not None
    }
    assert (
        job["state"] == "finished"
        and {2, 4} <= set(measured) <= {2, 4, 5}
        and len(rows) == 5
        and job["validation_loss"] == measured[max(measured)]
    )
    assert (
        all(0 < loss < 100 for loss in measured.values())
        and service.metrics(job_id, since=3) == rows[3:]
    )
    assert read_metrics(service.job_folder(job_id)) == rows


def test_paths_outside_the_roots_are_refused(host, settings, pictures, tmp_path):
    service = TrainingService(host, allowed_roots=[host.data_dir, host.lora_dir])
    for changes in (
        {},
        {"train_data_dir": "/"},
        {"train_data_dir": "/etc"},
        {"train_data_dir": str(host.data_dir / ".." / "..")},
    ):
        with pytest.raises(Refused, match="only folders inside") as caught:
            service.start({**settings, **changes})
        assert caught.value.field == "train_data_dir"
    with pytest.raises(Refused, match="only folders inside"):
        service.library.create("mine", str(pictures))
    (host.data_dir / "link").symlink_to(pictures)
    with pytest.raises(Refused, match="only folders inside"):
        service.start({**settings, "train_data_dir": str(host.data_dir / "link")})
    inside = TrainingService(host, allowed_roots=[tmp_path])
    with pytest.raises(Refused) as caught:
        inside.start({**settings, "output_dir": "/tmp/elsewhere"})
    assert caught.value.field == "output_dir"


def test_problems_of_the_database_are_told(host):
    host.data_dir.mkdir(parents=True)
    (host.data_dir / "jobs.sqlite3").write_bytes(b"x" * 5000)
    service = TrainingService(host)
    assert "list of jobs was damaged" in service.status()["problems"][0] and service.jobs() == []
