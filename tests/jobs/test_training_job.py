"""A training job's figures: what a step brought stands in every row that tells of it."""

import pytest

from lora_trainer.jobs.metrics import read_metrics
from lora_trainer.training import validation
from tests.jobs.test_tensorboard import scalars

pytest.importorskip("tensorboardX.proto.event_pb2")


def test_a_validation_loss_equal_to_the_one_before_is_kept(service, host, settings, monkeypatch):
    """As with a learning rate of next to nothing, or a plateau."""
    monkeypatch.setattr(validation, "validate", lambda *arguments: 0.5)
    config = {**settings, "validation_split": 0.25, "validate_every": 2, "logging_dir": ""}
    job = service.wait(service.start(config), timeout=60)
    folder = host.data_dir / "jobs" / job["id"]
    expected = [None, 0.5, None, 0.5, None, 0.5]
    assert [row["validation_loss"] for row in service.metrics(job["id"])] == expected
    assert [row["validation_loss"] for row in read_metrics(folder)] == expected
    in_tensorboard = [
        (step, value)
        for step, tag, value in scalars(folder / "tensorboard")
        if tag == "validation_loss"
    ]
    assert in_tensorboard == [(2, 0.5), (4, 0.5), (6, 0.5)]
