"""What takes how much of the disk, what of it can go, and what never does: LoRAs, and all that an
unfinished job needs to go on.
"""

import os
import time

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.jobs.service import TrainingService
from lora_trainer.jobs.storage import Limits
from tests.jobs.test_resume import slowed, stopped_at
from tests.support.waiting import stop_all

DAY = 86_400


@pytest.fixture
def short(settings):
    return {**settings, "max_train_steps": 12, "save_state_steps": 2, "preview": False}


def states(service, job_id):
    return sorted(path.name for path in (service.job_folder(job_id) / "state").glob("step-*"))


@pytest.fixture
def done(service, host, short, monkeypatch):
    """Three finished jobs and one that was stopped; returns their ids, oldest first."""
    finished = [
        service.wait(service.start({**short, "output_name": name}), 60)["id"]
        for name in ("a", "b", "c")
    ]
    slowed(host, monkeypatch)
    return [*finished, stopped_at(service, short, 5, output_name="stopped")["id"]]


def test_a_finished_job_keeps_one_state_and_an_unfinished_one_two(service, done):
    assert [states(service, job_id) for job_id in done[:3]] == [["step-000012.safetensors"]] * 3
    assert len(states(service, done[3])) == 2
    report = service.storage.report()
    sizes = [
        (service.job_folder(job_id) / "state" / "step-000012.safetensors").stat().st_size
        for job_id in done[:3]
    ]
    assert (
        report["states"] == {"count": 3, "bytes": sum(sizes)}
        and report["jobs"]["count"] == 4
        and report["jobs"]["finished"] == 3
    )
    assert report["jobs"]["bytes"] > 5 * min(sizes) and report["free_bytes"] > 0


def test_states_of_finished_jobs_go_and_those_of_others_stay(service, done):
    assert service.storage.clear("states")["count"] == 3
    assert [states(service, job_id) for job_id in done[:3]] == [[]] * 3 and len(
        states(service, done[3])
    ) == 2
    assert not service.job(done[0])["resumable"] and service.job(done[3])["resumable"]
    assert service.storage.report()["states"] == {"count": 0, "bytes": 0}


def test_jobs_go_and_their_loras_stay(service, host, done):
    assert service.storage.clear("jobs", keep=1)["count"] == 2
    assert [job["id"] for job in service.jobs()] == [done[3], done[2]] and not service.job_folder(
        done[0]
    ).exists()
    assert sorted(path.stem for path in host.lora_dir.glob("*.safetensors")) == [
        "a",
        "b",
        "c",
        "stopped",
    ]


def test_a_running_job_is_never_touched(service, busy):
    before = service.job(busy)["state"]
    for what in ("states", "jobs", "trash", "models"):
        service.storage.clear(what)
    assert before in ("preparing", "training") and service.job(busy)["state"] in (
        "preparing",
        "training",
    )
    with pytest.raises(Refused, match="nothing to clear that is called 'all'"):
        service.storage.clear("all")


def test_models_and_trash(service, host, pictures):
    models = host.data_dir / "models" / "somebody--tagger"
    models.mkdir(parents=True)
    (models / "model.safetensors").write_bytes(b"x" * 1000)
    service.library.create("set")
    for picture in pictures.iterdir():
        service.library.add("set", picture.name, picture.read_bytes())
    editor = service.library.open("set")
    editor.files.move_to_trash(["0.png", "1.png"])
    report = service.storage.report()
    assert report["models"] == {"count": 1, "bytes": 1000} and report["trash"]["count"] >= 2
    assert (
        service.storage.clear("models")["bytes"] == 1000
        and service.storage.clear("trash")["count"] == report["trash"]["count"]
    )
    assert (
        service.storage.report()["trash"]
        == service.storage.report()["models"]
        == {"count": 0, "bytes": 0}
    )
    assert "0.png" not in editor.captions() and "2.png" in editor.captions()
    with pytest.raises(Refused, match="Not in the trash folder any more"):
        editor.undo()


def test_a_link_in_the_trash_leads_nowhere(service, host, tmp_path, pictures):
    service.library.create("set")
    service.library.add("set", "0.png", (pictures / "0.png").read_bytes())
    editor = service.library.open("set")
    editor.files.move_to_trash(["0.png"])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    trash = host.data_dir / "datasets" / "set" / ".train_lora" / "trash"
    (trash / "file").symlink_to(outside / "mine.txt")
    (trash / "folder").symlink_to(outside, target_is_directory=True)
    assert (
        service.storage.clear("trash")["count"] == 1
        and (outside / "mine.txt").read_text() == "mine"
    )


@pytest.mark.parametrize(
    "limits, left",
    [
        (Limits(), [1, 1, 1]),
        (Limits(state_days=2), [0, 1, 1]),
        (Limits(state_gb=1e-9), [0, 0, 0]),
        (Limits(state_days=0, state_gb=0), [1, 1, 1]),
    ],
)
def test_states_are_cleared_by_age_and_size(host, service, done, limits, left):
    service.store.update(done[0], finished_at=time.time() - 3 * DAY)
    stop_all(service)
    again = TrainingService(host, limits=limits)
    assert [len(states(again, job_id)) for job_id in done[:3]] == left and len(
        states(again, done[3])
    ) == 2
    again.library.close()


def test_the_newest_jobs_are_kept(host, service, done, short):
    stop_all(service)
    again = TrainingService(host, limits=Limits(keep_jobs=2))
    assert [job["id"] for job in again.jobs()] == [done[3], done[2], done[1]]
    again.wait(again.start({**short, "output_name": "d"}), 60)
    again.wait(again.start({**short, "output_name": "e"}), 60)
    assert [job["name"] for job in again.jobs()] == [
        "e",
        "d",
        "stopped",
        "c",
    ]  # the running one counts when it has finished
    assert {path.stem for path in host.lora_dir.glob("*.safetensors")} == {
        "a",
        "b",
        "c",
        "d",
        "e",
        "stopped",
    }
    again.library.close()


def test_states_of_older_versions_are_pruned(host, service, done):
    folder = service.job_folder(done[0]) / "state"
    (folder / "step-000010.safetensors").write_bytes(b"before")
    stop_all(service)
    TrainingService(host).library.close()
    assert [path.name for path in folder.iterdir()] == ["step-000012.safetensors"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions")
def test_what_cannot_be_removed_is_said(service, done):
    folder = service.job_folder(done[0]) / "state"
    folder.chmod(0o500)
    cleared = service.storage.clear("states")
    folder.chmod(0o700)
    assert cleared["count"] == 2 and "stays" in cleared["problems"][0]


def test_closing_keeps_the_running_jobs_progress(host, service, short, monkeypatch):
    slowed(host, monkeypatch)
    waits = None
    job_id = service.start({**short, "max_train_steps": 400, "save_state_steps": 0})
    waits = service.start({**short, "output_name": "waits"})
    deadline = time.monotonic() + 30
    while service.job(job_id)["step"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service.close()
    job = service.job(job_id)
    assert (job["state"], job["resumable"], job["resume_step"]) == (
        "interrupted",
        True,
        job["step"],
    ) and job["output_file"] is None
    assert service.job(waits)["state"] == "queued" and service.queue.held


def test_a_finished_job_of_an_unknown_end_is_as_old_as_its_beginning(service, short):
    job = service.wait(service.start(short), 60)["id"]
    service.store.update(job, finished_at=None)
    service.storage.tidy()
    assert service.job(job)["resumable"]
    service.store._database.execute(
        "update jobs set created_at = ? where id = ?", (time.time() - 31 * DAY, job)
    )
    service.storage.tidy()
    assert not service.job(job)["resumable"]


def test_a_state_that_goes_while_a_job_is_asked_to_go_on_is_missed(
    service, host, short, monkeypatch
):
    job, check = service.wait(service.start(short), 60)["id"], service._resume_check.check
    learned = (host.lora_dir / "mine.safetensors").read_bytes()

    def slow(*arguments, **options):
        checked = check(*arguments, **options)
        service.storage.clear("states")
        return checked

    monkeypatch.setattr(service._resume_check, "check", slow)
    with pytest.raises(Refused, match="removed in this moment"):
        service.resume(job, {"max_train_steps": 14})
    assert (
        service.job(job)["state"] == "finished"
        and (host.lora_dir / "mine.safetensors").read_bytes() == learned
    )
