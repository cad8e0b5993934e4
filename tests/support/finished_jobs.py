"""A job that has ended, with a LoRA, a snapshot and their cards."""

import pytest


@pytest.fixture
def job(service, settings):
    return service.wait(
        service.start({**settings, "output_name": "zib ü", "max_train_steps": 4, "save_steps": 2}),
        60,
    )
