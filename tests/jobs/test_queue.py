"""The order of jobs: one after another, moved, cancelled, held, and found again by the next
process.
"""

import dataclasses
import shutil
import subprocess
import sys

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.jobs import lock_file
from lora_trainer.jobs.service import TrainingService
from lora_trainer.jobs.training_job import TrainingJob
from tests.support.queued_jobs import named, waiting
from tests.support.waiting import stop_all, until


def test_jobs_run_one_after_another_in_their_order(service, settings, busy):
    a, b, c = (service.start(named(settings, name)) for name in "abc")
    assert (
        waiting(service) == ["a", "b", "c"]
        and service.queue_status() == {"queue_held": False, "queued": 3}
        and service.current_job()["id"] == busy
    )
    assert [job["name"] for job in service.move(c, 0)] == ["c", "a", "b"]
    assert [job["position"] for job in service.move(a, 99)] == [0, 1, 2] and waiting(service) == [
        "c",
        "b",
        "a",
    ]
    service.stop(busy)
    jobs = [service.wait(job_id, 60) for job_id in (c, b, a)]
    assert [job["state"] for job in jobs] == ["finished"] * 3
    assert (
        jobs[0]["finished_at"] < jobs[1]["finished_at"] < jobs[2]["finished_at"]
        and service.current_job() is None
    )
    with pytest.raises(Refused, match="does not wait any more"):
        service.move(a, 0)


def test_the_next_begins_however_one_ends(service, settings, pictures, busy, tmp_path):
    shutil.copytree(pictures, tmp_path / "gone")
    failing = service.start(named(settings, "failing", train_data_dir=str(tmp_path / "gone")))
    after = service.start(named(settings, "after"))
    shutil.rmtree(tmp_path / "gone")
    service.stop(busy)
    assert (
        service.wait(after, 60)["state"] == "finished" and service.job(busy)["state"] == "stopped"
    )
    assert service.job(failing)["state"] == "failed" and "gone" in service.job(failing)["error"]


def test_a_job_that_waits_is_cancelled(service, settings, busy):
    a, b = (service.start(named(settings, name)) for name in "ab")
    job = service.stop(a)
    assert (job["state"], job["message"], job["position"], job.get("step", 0)) == (
        "stopped",
        "Cancelled before it began.",
        None,
        0,
    )
    assert job["finished_at"] and waiting(service) == ["b"] and not service.job_folder(a).exists()
    assert service.wait(a, 1)["state"] == "stopped"
    service.stop(busy)
    assert service.wait(b, 60)["state"] == "finished" and service.job(a)["state"] == "stopped"


def test_a_plan_that_went_wrong_meanwhile_fails_its_job_only(service, settings, host, busy):
    job_id = service.start(named(settings, "late"))
    (host.lora_dir / "late.safetensors").write_bytes(b"somebody else's")
    service.stop(busy)
    job = service.wait(job_id, 60)
    assert (
        job["state"] == "failed"
        and "late exists already" in job["error"]
        and (host.lora_dir / "late.safetensors").read_bytes() == b"somebody else's"
    )


def test_a_held_queue_lets_nothing_begin(service, settings, busy):
    assert service.hold_queue()["queue_held"]
    a = service.start(named(settings, "a"))
    service.stop(busy)
    assert (
        service.wait(busy, 60)["state"] == "stopped"
        and service.job(a)["state"] == "queued"
        and service.current_job() is None
    )
    b = service.start(named(settings, "b"))  # the user holds it, so that new ones wait, too
    assert waiting(service) == ["a", "b"] and not service.start_queue()["queue_held"]
    assert service.wait(b, 60)["state"] == "finished" and service.job(a)["state"] == "finished"


def test_after_a_restart_the_queue_waits_for_the_user(service, settings, host, busy, monkeypatch):
    a, b = (service.start(named(settings, name)) for name in "ab")
    with monkeypatch.context() as patch:  # as after a crash; the first service stops for itself
        patch.setattr(lock_file, "is_locked", lambda folder: False)
        again = TrainingService(host)
    assert again.job(busy)["state"] == "interrupted" and again.job(busy)["resumable"]
    assert (
        waiting(again) == ["a", "b"]
        and again.status()["queue_held"]
        and again.status()["queued"] == 2
        and again.current_job() is None
    )
    stop_all(service)
    assert again.job(a)["state"] == "queued"
    c = again.start(named(settings, "c"))  # to start any job lets them go on
    assert not again.queue_status()["queue_held"]
    assert [again.wait(job_id, 60)["state"] for job_id in (a, b, c)] == ["finished"] * 3
    assert again.job(a)["finished_at"] < again.job(b)["finished_at"] < again.job(c)["finished_at"]


def test_resume_of_a_job_that_waits_starts_the_queue_with_it(service, settings, host):
    service.hold_queue()
    a, b = (service.start(named(settings, name)) for name in "ab")
    again = TrainingService(host)
    assert again.queue_status()["queue_held"]
    again.resume(b)
    assert [again.wait(job_id, 60)["state"] for job_id in (a, b)] == ["finished"] * 2
    assert again.job(b)["finished_at"] < again.job(a)["finished_at"]


def test_a_command_runs_its_own_job_only(service, settings, host):
    service.hold_queue()
    others = service.start(named(settings, "others"))
    command = TrainingService(host)
    mine = command.start(named(settings, "mine"), ahead_of_queue=True)
    with pytest.raises(Refused, match="still running") as caught:
        command.start(named(settings, "second"), ahead_of_queue=True)
    assert caught.value.code == "busy" and command.store.named("second") == []
    assert (
        command.wait(mine, 60)["state"] == "finished"
        and command.job(others)["state"] == "queued"
        and command.current_job() is None
    )


def test_deleted_jobs_are_gone_and_their_loras_stay(service, settings, host, busy):
    with pytest.raises(Refused, match="Stop it first") as caught:
        service.delete(busy)
    assert caught.value.code == "busy" and service.job_folder(busy).is_dir()
    queued = service.start(named(settings, "queued"))
    with pytest.raises(Refused, match="has not ended"):
        service.delete(queued)
    service.stop(queued)
    service.stop(busy)
    service.wait(busy, 60)
    for job_id in (busy, queued):
        service.delete(job_id)
        assert not service.job_folder(job_id).exists()
    assert service.jobs() == [] and (host.lora_dir / "busy.safetensors").is_file()
    with pytest.raises(Refused, match="no job"):
        service.delete(busy)


def test_a_job_of_another_process_is_left_alone(service, settings, host):
    job_id = service.store.add("elsewhere", settings)
    service.store.update(job_id, state="training")
    folder = service.job_folder(job_id)
    folder.mkdir(parents=True)
    code = (
        "import sys, pathlib; from lora_trainer.jobs.lock_file import locked\nwith"
        " locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n" and lock_file.is_locked(folder)
        assert TrainingService(host).job(job_id)["state"] == "training"
        service.store.update(job_id, state="stopped")
        with pytest.raises(Refused, match="Another program is working on job"):
            service.resume(job_id)
        process.kill()  # the system lets the lock go
    service.store.update(job_id, state="training")
    until(lambda: not lock_file.is_locked(folder))
    assert TrainingService(host).job(job_id)["state"] == "interrupted"


def test_a_process_that_dies_while_this_one_lives(service, settings):
    job_id = service.store.add("elsewhere", settings)
    folder = service.job_folder(job_id)
    folder.mkdir(parents=True)
    service.store.update(job_id, state="training")
    code = (
        "import sys, pathlib; from lora_trainer.jobs.lock_file import locked\nwith"
        " locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        assert service.job(job_id)["state"] == service.jobs()[0]["state"] == "training"
        with pytest.raises(Refused, match="Stop it first"):
            service.delete(job_id)
        process.kill()
    job = until(lambda: (job := service.job(job_id))["state"] == "interrupted" and job)
    assert job["resumable"] and service.jobs()[0]["state"] == "interrupted"
    service.resume(job_id, {"max_train_steps": 2})
    assert service.wait(job_id, 60)["state"] == "finished"


def test_a_running_job_of_ours_keeps_its_lock_when_it_is_looked_at(service, busy):
    code = (
        "import sys, pathlib; from lora_trainer.jobs.lock_file import"
        " is_locked\nprint(is_locked(pathlib.Path(sys.argv[1])))"
    )
    for _ in range(20):
        assert service.job(busy)["state"] in ("preparing", "training") and service.jobs()
    assert (
        subprocess.run(
            [sys.executable, "-c", code, str(service.job_folder(busy))],
            capture_output=True,
            text=True,
        ).stdout
        == "True\n"
    )


@pytest.mark.parametrize("where", ["make", "begin"])
def test_a_job_that_cannot_begin_fails_and_the_next_one_runs(service, settings, monkeypatch, where):
    service.hold_queue()
    a, b = (service.start(named(settings, name)) for name in "ab")
    begin, make = TrainingJob.begin, service.queue._make

    def refuse(row):
        if row.id == a:
            raise PermissionError("no")
        return make(row)

    if where == "make":
        monkeypatch.setattr(service.queue, "_make", refuse)
    else:
        monkeypatch.setattr(
            TrainingJob,
            "begin",
            lambda job, on_end: 1 / 0 if job.job_id == a else begin(job, on_end),
        )
    service.start_queue()
    assert service.wait(b, 60)["state"] == "finished"
    job = service.job(a)
    assert (
        job["state"] == "failed"
        and "It could not begin: " in job["error"]
        and job["finished_at"]
        and job["resumable"]
    )
    monkeypatch.undo()
    service.resume(a)
    assert service.wait(a, 60)["state"] == "finished"


def test_of_two_resumes_at_once_one_is_refused(service, settings, busy, monkeypatch):
    """The second comes while the first reads the pictures; each finds the job stopped."""
    a = service.start(named(settings, "a"))
    service.stop(a)
    check, inner = service._resume_check.check, []

    def slow(job, changes, **options):
        found = check(job, changes, **options)
        if not inner:
            inner.append(1)
            service.resume(a, {"max_train_steps": 3})
        return found

    monkeypatch.setattr(service._resume_check, "check", slow)
    with pytest.raises(Refused, match="in this moment") as caught:
        service.resume(a, {"max_train_steps": 4})
    assert caught.value.code == "busy" and service.job(a)["config"]["max_train_steps"] == 3


def test_jobs_train_the_checkpoint_that_was_loaded_when_they_were_queued(
    service, settings, host, busy
):
    host.changes_checkpoints, host.load_checkpoint = (
        True,
        lambda name: setattr(host, "status", dataclasses.replace(host.status, checkpoint=name)),
    )
    host.status = dataclasses.replace(host.status, checkpoint="dreamy", sha256="d" * 64)
    a = service.start(named(settings, "a"))
    assert (
        service.job(a)["checkpoint"] == "dreamy"
        and not {"for_checkpoint", "for_sha256"} & service.job(a).keys()
    )
    host.status = dataclasses.replace(host.status, checkpoint="tiny", sha256="0" * 64)
    b = service.duplicate(a)
    assert service.job(b)["checkpoint"] == "tiny"
    service.stop(busy)
    job = until(lambda: (job := service.job(a))["state"] == "paused" and job)
    assert (job["waiting_for"], job["checkpoint"]) == (
        "checkpoint",
        "dreamy",
    ) and "waiting for the checkpoint dreamy" in job["message"]
    host.status = dataclasses.replace(
        host.status, checkpoint="dreamy again", sha256="d" * 64
    )  # renamed, and the same
    assert service.wait(a, 60)["state"] == "finished"
    host.status = dataclasses.replace(host.status, checkpoint="tiny", sha256="0" * 64)
    assert service.wait(b, 60)["state"] == "finished"


def test_a_program_with_another_checkpoint_leaves_the_job_alone(service, settings, host):
    service.hold_queue()
    a = service.start(named(settings, "a"))
    host.status = dataclasses.replace(host.status, checkpoint="other")
    service.start_queue()
    job = service.wait(a, 60)
    assert (
        job["state"] == "failed"
        and "for the checkpoint tiny" in job["error"]
        and "other" in job["error"]
    )
    host.status = dataclasses.replace(host.status, checkpoint="tiny")
    service.resume(a)
    assert service.wait(a, 60)["state"] == "finished"
