"""A service that leaves no thread behind."""

import pytest

from lora_trainer.jobs.service import TrainingService
from tests.support.waiting import LONG, stop_all, until


@pytest.fixture
def service(host):
    service = TrainingService(host)
    yield service
    stop_all(service)


@pytest.fixture
def busy(service, settings):
    """The id of a job that trains on and on."""
    job_id = service.start({**settings, **LONG, "output_name": "busy"})
    until(lambda: service.job(job_id)["step"])
    return job_id
