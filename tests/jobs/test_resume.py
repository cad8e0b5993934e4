"""Jobs that pause, stop, are killed and go on: the same LoRA, the same figures, and reasons where
it cannot be.
"""

import os
import signal
import textwrap
import time

import pytest
from safetensors.torch import load_file

from lora_trainer.base.errors import Refused
from lora_trainer.jobs.service import TrainingService
from tests.support.processes import REPOSITORY, start
from tests.support.waiting import LONG, stop_all, until

STEPS = 40


@pytest.fixture
def short(settings):
    return {**settings, "max_train_steps": STEPS, "preview": False}


def stopped_at(service, values, step, **more):
    """Start a job and stop it some steps after one."""
    job_id = service.start({**values, **more})
    until(lambda: service.job(job_id)["step"] >= step)
    service.stop(job_id)
    return service.wait(job_id, 60)


def slowed(host, monkeypatch, seconds=0.02):
    """Make every step take its time, so that a test can act in the middle of a short run."""
    predict = host.model.predict
    monkeypatch.setattr(
        host.model, "predict", lambda *arguments: (time.sleep(seconds), predict(*arguments))[1]
    )


def same_weights(one, other):
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


def test_stop_and_resume_give_the_lora_and_figures_of_one_run(service, host, short, monkeypatch):
    slowed(host, monkeypatch)
    whole = service.wait(service.start({**short, "output_name": "whole"}), 60)
    job = stopped_at(service, short, 5)
    assert (
        job["state"] == "stopped"
        and 5 <= job["step"] < STEPS
        and job["resumable"]
        and job["resume_step"] == job["step"]
    )
    going_on = service.resume(job["id"])
    assert going_on["state"] in ("queued", "preparing", "training") and not going_on["resumable"]
    again = service.wait(job["id"], 60)
    assert (again["id"], again["state"], again["step"], again["error"]) == (
        job["id"],
        "finished",
        STEPS,
        None,
    )
    assert same_weights(whole["output_file"], again["output_file"])

    def figures(job_id):
        return [(row["step"], row["loss"], row["learning_rate"]) for row in service.metrics(job_id)]

    assert figures(job["id"]) == figures(whole["id"]) and len(figures(whole["id"])) == STEPS
    seconds = [row["seconds"] for row in service.metrics(job["id"])]
    assert seconds == sorted(seconds)
    assert service.log(job["id"])["text"].count("base model tiny") == 2


def test_asked_in_the_moment_of_its_end_it_goes_on_all_the_same(service, host, short, monkeypatch):
    """The row says "stopped" before the thread has closed its files; whoever resumes by then must
    not be ignored.
    """
    from lora_trainer.jobs import training_job

    close = training_job.EventFile.close
    monkeypatch.setattr(
        training_job.EventFile, "close", lambda file: (time.sleep(0.5), close(file))
    )
    slowed(host, monkeypatch)
    job_id = service.start(short)
    until(lambda: service.job(job_id)["step"] >= 3)
    service.stop(job_id)
    until(lambda: service.job(job_id)["state"] == "stopped")
    assert service.queue.running is not None  # its thread, that is
    service.resume(job_id)
    job = service.wait(job_id, 60)
    assert (job["state"], job["step"]) == ("finished", STEPS)
    service.delete(job_id)
    assert not service.job_folder(job_id).exists()


def test_pause_and_go_on(service, host, short, monkeypatch):
    slowed(host, monkeypatch)
    job_id = service.start(short)
    until(lambda: service.job(job_id)["step"])
    assert service.pause(job_id, free_memory=True)["free_memory"]
    job = until(lambda: (now := service.job(job_id))["state"] == "paused" and now)
    assert (job["waiting_for"], job["pausing"], job["position"]) == ("user", False, None) and job[
        "message"
    ]
    other = service.start({**short, "output_name": "other", "max_train_steps": 2})
    assert (
        service.job(other)["state"] == "queued" and service.current_job()["id"] == job_id
    )  # a paused job keeps its place
    assert service.store.get(job_id).state == "paused"
    with pytest.raises(Refused, match="when the job has stopped") as caught:
        service.resume(job_id, {"epochs": 3})
    assert caught.value.code == "busy"
    service.resume(job_id)
    job = service.wait(job_id, 60)
    assert (job["state"], job["step"], job["waiting_for"]) == (
        "finished",
        STEPS,
        "",
    ) and service.wait(other, 60)["state"] == "finished"


def test_stop_while_it_is_paused(service, busy):
    service.pause(busy)
    until(lambda: service.job(busy)["state"] == "paused")
    service.stop(busy)
    assert service.wait(busy, 30)["state"] == "stopped"


def test_a_snapshot_on_the_way(service, host, busy):
    service.snapshot(busy)
    job = until(lambda: (now := service.job(busy))["snapshots"] and now)
    assert (host.lora_dir / f"{job['snapshots'][0]}.safetensors").is_file()


def test_changes_that_are_sound_and_others(service, host, short, monkeypatch):
    slowed(host, monkeypatch)
    job = stopped_at(service, short, 3)
    for changes, field in (
        ({"lora_rank": 2}, "lora_rank"),
        ({"seed": 1}, "seed"),
        ({"max_train_steps": -1}, "max_train_steps"),
        ({"what": 1}, "what"),
    ):
        with pytest.raises(Refused) as caught:
            service.resume(job["id"], changes)
        assert caught.value.field == field and service.job(job["id"])["state"] == "stopped"
    service.resume(job["id"], {"max_train_steps": STEPS + 5, "learning_rate": 1e-3})
    again = service.wait(job["id"], 60)
    assert (again["state"], again["step"], again["config"]["max_train_steps"]) == (
        "finished",
        STEPS + 5,
        STEPS + 5,
    )
    assert [row["step"] for row in service.metrics(job["id"])] == list(range(1, STEPS + 6))
    assert f"max_train_steps: {STEPS + 5}" in (
        service.job_folder(job["id"]) / "config.yaml"
    ).read_text(encoding="utf-8")
    service.resume(job["id"], {"max_train_steps": STEPS + 7})  # a finished run is made longer
    assert service.wait(job["id"], 60)["step"] == STEPS + 7


def test_reasons_why_it_would_not_be_the_same_run(service, host, short, pictures, monkeypatch):
    slowed(host, monkeypatch)
    job = stopped_at(service, short, 3)
    (pictures / "0.txt").write_text("another caption", encoding="utf-8")
    with pytest.raises(Refused) as caught:
        service.resume(job["id"])
    assert (
        caught.value.code == "cannot_resume"
        and caught.value.details["anyway_possible"]
        and "0.png" in caught.value.details["reasons"][0]
    )
    assert service.job(job["id"])["state"] == "stopped"
    service.resume(job["id"], anyway=True)
    again = service.wait(job["id"], 60)
    assert (
        again["state"] == "finished"
        and again["step"] == STEPS
        and any("0.png" in remark for remark in again["remarks"])
    )


def moved(lora, place):
    """Move a LoRA, as a user would between two parts of its run."""
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(lora, place)


@pytest.mark.parametrize("to", ["", "mine/mine.safetensors", "mine-before.safetensors"])
def test_its_own_snapshots_are_in_nobodys_way(service, host, short, monkeypatch, to):
    """Killed between a snapshot and the name itself, or with that file moved by the user: what is
    left is of the same run.
    """
    slowed(host, monkeypatch)
    job = stopped_at(service, short, 5, save_steps=3)
    lora = host.lora_dir / "mine.safetensors"
    moved(lora, host.lora_dir / to) if to else lora.unlink()
    assert (host.lora_dir / "mine-000003.safetensors").is_file()
    service.resume(job["id"])
    again = service.wait(job["id"], 60)
    assert (again["state"], again["error"], again["output_file"]) == ("finished", None, str(lora))


def test_a_run_that_lost_its_states_may_replace_its_files(service, host, short, monkeypatch):
    """All states are damaged, so it begins anew; nothing says any more whose the LoRA is."""
    slowed(host, monkeypatch)
    job = stopped_at(service, short, 5, save_steps=3)
    for state in (service.job_folder(job["id"]) / "state").iterdir():
        state.write_bytes(b"damaged")
    service.resume(job["id"], {"overwrite": True}, anyway=True)
    again = service.wait(job["id"], 60)
    assert (again["state"], again["error"]) == ("finished", None)


def test_another_runs_file_in_the_way_is_replaced_when_asked_for(service, host, short, monkeypatch):
    """The advice of the refusal can be followed in the middle of a run."""
    slowed(host, monkeypatch)
    job = stopped_at(service, short, 5, save_steps=3)
    other = service.wait(service.start({**short, "output_name": "other", "max_train_steps": 2}), 60)
    moved(host.lora_dir / "other.safetensors", host.lora_dir / "mine.safetensors")
    assert other["state"] == "finished"
    with pytest.raises(
        Refused, match="exists already, and is not of this run. Replace it, or move it"
    ) as caught:
        service.resume(job["id"])
    assert caught.value.code == "name_taken"
    service.resume(job["id"], {"overwrite": True})
    assert service.wait(job["id"], 60)["state"] == "finished"


def test_cancelled_before_it_went_on(service, host, short, settings, monkeypatch):
    slowed(host, monkeypatch)
    job = stopped_at(service, short, 3)
    busy = service.start({**settings, **LONG, "output_name": "busy"})
    waits = service.resume(job["id"])
    assert (waits["state"], waits["position"], waits["resume_step"], waits["output_file"]) == (
        "queued",
        0,
        job["resume_step"],
        job["output_file"],
    )
    assert f"step {job['resume_step']}" in waits["message"]
    cancelled = service.stop(job["id"])
    assert (cancelled["state"], cancelled["message"], cancelled["resumable"]) == (
        "stopped",
        "Cancelled before it went on.",
        True,
    )
    service.resume(job["id"])
    service.stop(busy)
    assert service.wait(job["id"], 60)["state"] == "finished"


def test_a_failed_job_goes_on_where_its_state_is(service, host, short, monkeypatch):
    with monkeypatch.context() as patch:
        predict, calls = host.model.predict, []
        patch.setattr(
            host.model,
            "predict",
            lambda *arguments: (
                predict(*arguments) if len(calls) < 9 and not calls.append(1) else 1 / 0
            ),
        )
        job = service.wait(service.start({**short, "save_state_steps": 4}), 60)
    assert (
        job["state"] == "failed"
        and "ZeroDivisionError" in job["error"]
        and job["resumable"]
        and job["resume_step"] in (8, 9)
    )
    assert [row["step"] for row in service.metrics(job["id"])] == list(range(1, 10))
    service.resume(job["id"])
    again = service.wait(job["id"], 60)
    assert (again["state"], again["step"], again["error"]) == ("finished", STEPS, None)
    assert [row["step"] for row in service.metrics(job["id"])] == list(range(1, STEPS + 1))


def test_without_a_state_it_begins_anew(service, host, short, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(host.model, "encode_captions", lambda *arguments: 1 / 0)
        job = service.wait(service.start(short), 60)
    assert (job["state"], job["resumable"], job["resume_step"]) == ("failed", True, None)
    service.resume(job["id"])
    assert (
        service.wait(job["id"], 60)["state"] == "finished"
        and len(service.metrics(job["id"])) == STEPS
    )


def test_duplicate_has_the_next_free_name(service, short):
    job = service.wait(service.start({**short, "max_train_steps": 2}), 60)
    again = service.job(service.duplicate(job["id"], {"lora_rank": 2}))
    assert again["name"] == "mine-2" and again["config"] == {
        **job["config"],
        "output_name": "mine-2",
        "lora_rank": 2,
    }
    assert service.wait(again["id"], 60)["state"] == "finished"
    with pytest.raises(Refused) as caught:
        service.duplicate(job["id"], {"output_name": "mine"})
    assert caught.value.code == "name_taken"


def test_load_checkpoint_asks_the_host_for_the_one_that_was_trained(
    service, host, short, monkeypatch
):
    asked = []
    monkeypatch.setattr(host, "load_checkpoint", asked.append)
    job = service.wait(service.start({**short, "max_train_steps": 2}), 60)
    assert service.load_checkpoint(job["id"])["id"] == job["id"] and asked == ["tiny"]
    unknown = service.store.add("never begun", {})
    with pytest.raises(Refused, match="not known which checkpoint"):
        service.load_checkpoint(unknown)


@pytest.mark.parametrize("act", ["pause", "snapshot"])
def test_what_only_a_running_job_can_do(service, short, act):
    job = service.wait(service.start({**short, "max_train_steps": 2}), 60)
    with pytest.raises(Refused, match="is not running \\(finished\\)") as caught:
        getattr(service, act)(job["id"])
    assert caught.value.code == "not_running"


def test_event_files_follow_the_run(service, host, short, monkeypatch, tmp_path):
    pytest.importorskip("tensorboardX")
    from tests.jobs.test_tensorboard import event_pb2, events, scalars

    slowed(host, monkeypatch)
    job = stopped_at(service, short, 3, logging_dir=str(tmp_path / "logs"))
    service.resume(job["id"])
    job, folder = service.wait(job["id"], 60), tmp_path / "logs" / "mine"
    assert job["tensorboard_dir"] == str(folder)
    assert {tag for _, tag, _ in scalars(folder)} == {
        "loss",
        "loss_average",
        "learning_rate",
        "seconds_per_step",
    }
    assert [step for step, tag, _ in scalars(folder) if tag == "loss"] == list(range(1, STEPS + 1))
    assert [
        event.step
        for event in events(folder)
        if event.session_log.status == event_pb2.SessionLog.START
    ] != []


KILLED = """
    import sys, time
    from pathlib import Path
    from lora_trainer.jobs.service import TrainingService
    from tests.conftest import TinyHost
    host = TinyHost(Path(sys.argv[1]))
    predict = host.model.predict
    told = []
    host.model.predict = lambda *arguments: (time.sleep(60 if told else 0.02), predict(*arguments))[1]     # it does not end before it is killed
    service = TrainingService(host)
    job_id = service.start(eval(sys.argv[2]))
    while service.job(job_id)["state_step"] < 4 or service.job(job_id)["step"] < 7:
        time.sleep(0.01)
    told.append(True)
    print("now", flush=True)
    time.sleep(60)
"""  # noqa: E501


def test_killed_in_the_middle_it_goes_on_and_is_the_same(host, short):
    """`kill -9` of a process, its data folder taken over by this one."""
    values = {**short, "save_state_steps": 4, "save_steps": 6}
    folder = host.data_dir.parent.with_name("killed")
    program = ["-c", textwrap.dedent(KILLED), str(folder), repr(values)]
    with start(program, folder=REPOSITORY) as process:
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    host.data_dir, host.lora_dir = folder / "train_lora", folder / "Lora"
    service = TrainingService(host)
    (job,) = service.jobs()
    assert (job["state"], job["resumable"]) == ("interrupted", True) and 4 <= job[
        "resume_step"
    ] < STEPS
    service.resume(job["id"])
    assert service.wait(job["id"], 60)["state"] == "finished", service.job(job["id"])["error"]
    whole = service.wait(service.start({**values, "output_name": "whole"}), 60)
    assert same_weights(whole["output_file"], service.job(job["id"])["output_file"])
    assert [(row["step"], row["loss"]) for row in service.metrics(job["id"])] == [
        (row["step"], row["loss"]) for row in service.metrics(whole["id"])
    ]
    stop_all(service)
