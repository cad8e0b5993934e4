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


def test_plan_says_what_will_happen(service, settings):
    plan = service.planner.plan({**settings, "max_train_steps": 0, "epochs": 3})
    assert (plan["pictures"], plan["epochs"], plan["errors"], plan["lora_tag"]) == (
        6,
        3,
        [],
        "<lora:mine:0.8>",
    )
    assert (
        sum(bucket["pictures"] for bucket in plan["buckets"]) == 6
        and plan["trainable_parameters"] > 0
        and plan["estimated_seconds"] is None
    )
    service.wait(service.start({**settings, "max_train_steps": 0, "epochs": 3}), timeout=60)
    assert (
        service.jobs()[0]["step"] == plan["steps"]
        and service.planner.plan({**settings, "output_name": "second"})["estimated_seconds"] > 0
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


def test_estimates_come_from_finished_jobs(service, settings):
    for state, seconds in (("finished", 2.0), ("failed", 50.0)):
        service.store.update(
            service.store.add("x", service.settings.parse(settings).to_dict(), checkpoint="tiny"),
            state=state,
            progress={"seconds_per_step": seconds},
        )
    assert service.planner.plan(settings)["estimated_seconds"] == 2.0 * 6


def test_a_checkpoint_of_another_kind_has_no_estimate(service, settings, host):
    service.hold_queue()
    service.store.update(
        service.start(settings), state="finished", progress={"seconds_per_step": 2.0}
    )
    settings = {**settings, "output_name": "another"}
    for checkpoint, family, size_px, seconds in (
        ("tiny", "sd1", 0, 12.0),
        ("another", "sd1", 0, 12.0),
        ("other", "sdxl", 0, None),
        ("other", "sd1", 64, None),
    ):
        host.status = ModelStatus(
            True, checkpoint=checkpoint, family=family, size_px=size_px, prediction_type="epsilon"
        )
        assert service.planner.plan(settings)["estimated_seconds"] == seconds
    host.status = ModelStatus(True, checkpoint="tiny", family="sd1", prediction_type="epsilon")
    assert service.planner.plan({**settings, "batch_size": 3})["estimated_seconds"] is None


def test_problems_of_the_database_are_told(host):
    host.data_dir.mkdir(parents=True)
    (host.data_dir / "jobs.sqlite3").write_bytes(b"x" * 5000)
    service = TrainingService(host)
    assert "list of jobs was damaged" in service.status()["problems"][0] and service.jobs() == []


def test_duplicate_takes_kohyas_names(service, settings):
    first = service.start(settings)
    service.wait(first, 60)
    again = service.job(
        service.duplicate(first, {"network_dim": 8, "lora_alpha": 3, "network_alpha": 5})
    )
    assert (again["config"]["lora_rank"], again["config"]["lora_alpha"]) == (8, 3) and service.wait(
        again["id"], 60
    )["state"] == "finished"


# --- Deleting -------------------------------------------------------------------------------------


@pytest.fixture
def ended(service, settings):
    """A job that a crash has ended, with things in its folder."""
    job_id = service.store.add("mine", settings)
    service.store.update(job_id, state="interrupted")
    for name, content in {
        "replaced/mine.safetensors": b"the old one",
        "replaced/mine.json": b"its card",
        "mine.safetensors": b"could not be saved elsewhere",
        "state/step-000004.safetensors": b"a state",
        "log.txt": b"log",
    }.items():
        path = service.job_folder(job_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return job_id


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_loras_that_are_only_in_the_folder_outlive_it(service, host, ended):
    (host.lora_dir / "mine.safetensors").write_bytes(b"the new one")
    (host.lora_dir / "mine-2.json").write_bytes(b"somebody's card")
    moved = service.delete(ended)
    assert (
        not service.job_folder(ended).exists() and service.jobs() == [] and host.registered == moved
    )
    assert files_of(host.lora_dir) == {
        "mine.safetensors": b"the new one",
        "mine-2.json": b"somebody's card",
        "mine-3.safetensors": b"could not be saved elsewhere",
        "mine-4.safetensors": b"the old one",
        "mine-4.json": b"its card",
    }


def test_a_lora_that_is_there_already_is_not_doubled(service, host, ended):
    (host.lora_dir / "mine.safetensors").write_bytes(b"the old one")
    assert [path.name for path in service.delete(ended)] == ["mine-2.safetensors"]


def test_nothing_is_deleted_when_a_lora_cannot_be_moved(service, host, ended):
    host.lora_dir.rmdir()
    host.lora_dir.write_text("in the way")
    with pytest.raises(Refused, match="keeps a LoRA") as caught:
        service.delete(ended)
    folder = service.job_folder(ended)
    assert (
        caught.value.code == "cannot_save"
        and str(folder / "mine.safetensors") in caught.value.message
    )
    assert (
        len([path for path in folder.rglob("*") if path.is_file()]) == 5
        and service.job(ended)["state"] == "interrupted"
    )


def test_half_moved_is_not_moved(service, host, ended, monkeypatch):
    from lora_trainer.jobs import rescued_loras

    (service.job_folder(ended) / "mine.safetensors").unlink()
    write = rescued_loras.write_atomically

    def full(path, data, **options):
        if path.suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        write(path, data, **options)

    monkeypatch.setattr(rescued_loras, "write_atomically", full)
    with pytest.raises(Refused, match="No space left"):
        service.delete(ended)
    assert (
        files_of(host.lora_dir) == {}
        and (service.job_folder(ended) / "replaced" / "mine.json").is_file()
    )


def test_a_host_that_stumbles_over_a_moved_lora_is_no_reason_to_keep_the_job(
    service, host, ended, monkeypatch
):
    monkeypatch.setattr(host, "register", lambda path: 1 / 0)
    assert len(service.delete(ended)) == 2 and service.jobs() == []


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


def test_the_plan_foresees_a_full_disk(service, settings, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert [error["code"] for error in service.planner.plan(settings)["errors"]] == ["disk_full"]


# --- What is said before --------------------------------------------------------------------------


def test_a_plan_has_a_remedy_for_what_it_warns_of(service, settings, host):
    host.status = ModelStatus(True, checkpoint="pony", family="sdxl", size_px=1024)
    plan = service.planner.plan({**settings, "batch_size": 20})
    assert all(each["message"] in plan["warnings"] for each in plan["advice"])
    assert {"resolution": 1024} in [each["changes"] for each in plan["advice"]]
    for each in plan["advice"]:
        assert (
            each["message"]
            not in service.planner.plan({**settings, "batch_size": 20, **each["changes"]})[
                "warnings"
            ]
        )


def test_a_name_that_is_taken_comes_with_one_that_is_free_everywhere(service, settings, host):
    (host.lora_dir / "old").mkdir()
    (host.lora_dir / "old" / "mine.safetensors").write_bytes(b"x")
    (host.lora_dir / "old" / "mine-2.safetensors").write_bytes(b"x")
    (host.lora_dir / "mine-3-000100.safetensors").write_bytes(b"x")
    service.hold_queue()
    service.start({**settings, "output_name": "mine-4"})
    values = {**settings, "save_steps": 2}
    (error,) = service.planner.plan(values)["errors"]
    assert error["code"] == "name_taken" and error["remedies"] == [
        {"label": "Call it mine-5", "changes": {"output_name": "mine-5"}}
    ]
    assert service.planner.plan({**values, **error["remedies"][0]["changes"]})["errors"] == []


def test_a_refusal_that_nothing_is_known_of_has_no_remedies(service, settings):
    (error,) = service.planner.plan({**settings, "train_data_dir": ""})["errors"]
    assert "remedies" not in error
    (error,) = service.planner.plan({**settings, "nonsense": 1})["errors"]
    assert "remedies" not in error


def test_validation_of_two_pictures_is_refused_with_a_remedy(service, settings, pictures):
    for number in range(2, 6):
        (pictures / f"{number}.png").unlink()
    values = {**settings, "validation_split": 0.5}
    (error,) = service.planner.plan(values)["errors"]
    assert service.planner.plan({**values, **error["remedies"][0]["changes"]})["errors"] == []
