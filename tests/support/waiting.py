"""How tests wait for jobs, and leave no thread behind."""

import time

from lora_trainer.jobs.service import TrainingService

LONG = {"max_train_steps": 100_000}


def until(true, seconds: float = 30):
    """Wait until a condition holds and return its value; fail after a while."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
    return value


def stop_all(service: TrainingService) -> None:
    service.hold_queue()
    if job := service.current_job():
        service.stop(job["id"])
        service.wait(job["id"], 30)
