"""What is said of a job: of its row, of the running job, and of its folder."""

from pathlib import Path

from lora_trainer.jobs.job_views import view_job
from lora_trainer.jobs.store import JobStore


def test_what_waits_tells_its_size_and_what_ran_how_long_it_worked(service, settings):
    service.hold_queue()
    job_id = service.start(settings)
    waiting = service.job(job_id)
    assert (
        waiting["pictures"],
        waiting["total_steps"],
        waiting["checkpoint"],
        waiting["elapsed_seconds"],
    ) == (6, 6, "tiny", None)
    service.start_queue()
    done = service.wait(job_id, timeout=60)
    assert (
        0 < done["elapsed_seconds"] <= done["finished_at"] - done["created_at"]
        and done["pictures"] == 6
    )
    service.resume(job_id, {"max_train_steps": 8})
    assert service.wait(job_id, timeout=60)["elapsed_seconds"] > done["elapsed_seconds"]


def test_old_jobs_that_have_not_ended_are_listed(service, settings):
    service.hold_queue()
    oldest = service.start(settings)
    for number in range(60):
        service.store.update(
            service.store.add(f"old {number}", {"output_name": "x"}), state="finished"
        )
    assert oldest in [job["id"] for job in service.jobs()] and len(service.jobs()) == 51


def test_the_folder_is_told_in_full_wherever_the_command_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs" / "1" / "tensorboard").mkdir(parents=True)
    store = JobStore(tmp_path / "jobs.sqlite3")
    job_id = store.add("mine", {})
    store.update(job_id, state="finished", finished_at=1.0)
    row = store.get(job_id)
    store.close()
    assert view_job(row, {}, Path("jobs/1"), position=None)["tensorboard_dir"] == str(
        tmp_path / "jobs" / "1" / "tensorboard"
    )
