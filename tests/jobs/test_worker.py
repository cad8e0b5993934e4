"""However a job's thread comes to its end, the job has ended, and the next one runs."""

import os

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.jobs.training_job import TrainingJob


@pytest.fixture
def failed(service, settings):
    """Let a job fail, and another one after it run; returns the first."""

    def failed(patch):
        service.hold_queue()
        a, b = (
            service.start({**settings, "output_name": name, "max_train_steps": 2, "preview": False})
            for name in "ab"
        )
        patch(lambda job: job.job_id == a)
        service.start_queue()
        assert service.wait(b, 60)["state"] == "finished"
        job = service.job(a)
        assert job["state"] == "failed" and job["finished_at"] and service.current_job() is None
        return job

    return failed


def raising(monkeypatch, name, error):
    """Let a method of one job raise an error."""

    def patch(is_it):
        real = getattr(TrainingJob, name)

        def method(job, *arguments, **values):
            if is_it(job):
                raise error
            return real(job, *arguments, **values)

        monkeypatch.setattr(TrainingJob, name, method)

    return patch


def test_files_that_raise_anything(failed, service, monkeypatch):
    job = failed(
        raising(monkeypatch, "_files", TypeError("Descriptors cannot be created directly"))
    )
    assert "TypeError: Descriptors" in job["error"] and "log.txt" in job["error"]
    assert "Descriptors" in service.log(job["id"])["text"]


def test_names_that_are_not_utf8_in_what_is_told(failed, service, monkeypatch):
    job = failed(
        raising(monkeypatch, "_work", Refused(f"Bad: {os.fsdecode(b'caf' + bytes([233]))}.png."))
    )
    assert (
        job["error"] == "Bad: caf\\udce9.png."
        and "Bad: caf\\udce9.png." in service.log(job["id"])["text"]
    )


def test_a_folder_that_refuses(failed, monkeypatch):
    assert (
        "cannot be written: no room"
        in failed(raising(monkeypatch, "_files", OSError("no room")))["error"]
    )


def test_work_that_exits(failed, monkeypatch):
    assert "SystemExit" in failed(raising(monkeypatch, "_work", SystemExit(3)))["error"]


def test_an_end_that_raises(failed, monkeypatch):
    assert (
        "RuntimeError: never"
        in failed(raising(monkeypatch, "_end", RuntimeError("never")))["error"]
    )


def test_a_row_that_takes_nothing(failed, service, monkeypatch):
    """What cannot be written down is told all the same, as long as the program runs."""

    def patch(is_it):
        update = service.store.update

        def refuse(job_id, **values):
            if job_id == "1":
                raise TypeError("not JSON")
            update(job_id, **values)

        monkeypatch.setattr(service.store, "update", refuse)
        raising(monkeypatch, "_work", ValueError("because"))(is_it)

    assert "because" in failed(patch)["error"]


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError(), "how much was needed is not known"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "Memory ran out"),
        (RuntimeError("out of memory. Tried to allocate 2.00 GiB"), "2.00 GiB more were needed"),
    ],
)
def test_memory_that_ran_out_by_any_of_its_names(failed, monkeypatch, error, said):
    job = failed(raising(monkeypatch, "_work", error))
    assert (
        said in job["error"]
        and "lower the resolution" in job["error"]
        and "GPU" not in job["error"]
    )


def test_an_error_that_only_speaks_of_memory_is_no_lack_of_it(failed, monkeypatch):
    assert (
        "ValueError"
        in failed(raising(monkeypatch, "_work", ValueError("the file out of memory.txt is bad")))[
            "error"
        ]
    )
