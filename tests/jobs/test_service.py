"""Jobs as a page sees them: their states, what is refused, and what a restart finds."""
import time

import pytest

from lora_trainer.core.contracts import ModelStatus
from lora_trainer.core.errors import Refused
from lora_trainer.jobs.service import TrainingService


@pytest.fixture
def service(host):
    return TrainingService(host)


def test_a_job_runs_to_its_end(service, settings):
    job_id = service.start(settings)
    job = service.wait(job_id, timeout=60)
    assert (job["state"], job["step"], job["total_steps"], job["lora_tag"], job["error"]) == ("finished", 6, 6, "<lora:mine:0.8>", None)
    assert [row["step"] for row in service.metrics(job_id, since=2)] == [3, 4, 5, 6]
    log = (service.job_folder(job_id) / "log.txt").read_text(encoding="utf-8")
    assert "first step done" in log and "is ready" in log and (service.job_folder(job_id) / "config.yaml").is_file()


def test_only_one_at_a_time_and_stop_saves(service, settings):
    job_id = service.start({**settings, "max_train_steps": 100_000})
    with pytest.raises(Refused, match=f"Job {job_id} is still running") as caught:
        service.start({**settings, "output_name": "other"})
    assert caught.value.code == "busy" and service.current_job()["id"] == job_id
    while not service.job(job_id).get("step"):
        time.sleep(0.01)
    assert service.stop(job_id)["stopping"]
    job = service.wait(job_id, timeout=60)
    assert job["state"] == "stopped" and job["lora_tag"] and 0 < job["step"] < 100_000 and service.current_job() is None


def test_a_failure_is_told_and_the_next_job_runs(service, settings, host, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(host.model, "predict", lambda *args: 1 / 0)
        job = service.wait(service.start(settings), timeout=60)
    assert job["state"] == "failed" and "ZeroDivisionError" in job["error"] and "log.txt" in job["error"] and not job["output_file"]
    assert service.wait(service.start(settings), timeout=60)["state"] == "finished"


def test_out_of_memory_says_what_to_do(service, settings, host, monkeypatch):
    def full(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    monkeypatch.setattr(host.model, "predict", full)
    assert "Switch on Save memory" in service.wait(service.start(settings), timeout=60)["error"]


def test_restart_finds_the_interrupted_job_and_old_metrics(service, settings, host):
    done = service.start(settings)
    service.wait(done, timeout=60)
    lost = service.store.add("lost", {})
    service.store.update(lost, state="training", progress={"step": 3})
    again = TrainingService(host)
    assert again.job(lost)["state"] == "interrupted" and again.job(lost)["step"] == 3
    assert again.metrics(done) == service.metrics(done) and [job["id"] for job in again.jobs()] == [lost, done]


def test_refused_before_the_model_is_touched(service, settings, host):
    host.status = ModelStatus(False, "No checkpoint is loaded.")
    with pytest.raises(Refused, match="No checkpoint is loaded"):
        service.start(settings)
    assert service.plan(settings)["errors"][0]["code"] == "not_trainable" and service.jobs() == []


def test_plan_says_what_will_happen(service, settings):
    plan = service.plan({**settings, "max_train_steps": 0, "epochs": 3})
    assert (plan["pictures"], plan["epochs"], plan["errors"], plan["lora_tag"]) == (6, 3, [], "<lora:mine:0.8>")
    assert sum(bucket["pictures"] for bucket in plan["buckets"]) == 6 and plan["trainable_parameters"] > 0 and plan["estimated_seconds"] is None
    service.wait(service.start({**settings, "max_train_steps": 0, "epochs": 3}), timeout=60)
    assert service.jobs()[0]["step"] == plan["steps"] and service.plan({**settings, "output_name": "second"})["estimated_seconds"] > 0


def test_paths_outside_the_roots_are_refused(host, settings, pictures, tmp_path):
    service = TrainingService(host, allowed_roots=[host.data_dir, host.lora_dir])
    for changes in ({}, {"train_data_dir": "/"}, {"train_data_dir": "/etc"}, {"train_data_dir": str(host.data_dir / ".." / "..")}):
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
