"""What is tried again, and with what; whole runs are in tests/runs/test_pipeline_trouble.py."""

import pytest
import torch

from lora_trainer.base.errors import NotFinite, OutOfMemory
from lora_trainer.training.compute_mode import ComputeMode
from lora_trainer.training.model_patches import ModelPatches
from lora_trainer.training.recovery import Recovery
from lora_trainer.training.training_data import StepSchedule
from tests.support.samples import encoded_pictures
from tests.support.training import (
    make_adapters,
    make_train_state,
    make_training_data,
)


@pytest.fixture
def run(host):
    """Patches on the model, a train state and training data of batches of four."""
    adapters = make_adapters(host.model)
    training_data = make_training_data(encoded_pictures(), StepSchedule(4, 1, 4, 1, 0))
    with ModelPatches(host.model, adapters, ComputeMode(torch.float32)).applied() as patches:
        yield patches, make_train_state(adapters), training_data


def failing(times, error):
    """An action that raises so many times and then returns 7."""
    left = [error] * times

    def action():
        if left:
            raise left.pop()
        return 7

    return action


def test_memory_is_saved_step_by_step_until_the_action_succeeds(run):
    warnings = []
    recovery = Recovery(*run, warn=warnings.append)
    assert recovery.retry(failing(2, torch.cuda.OutOfMemoryError("out of memory"))) == 7
    assert run[0].compute_mode == ComputeMode(
        torch.float32, gradient_checkpointing=True, micro_batch_size=2
    )
    assert [warning.split(" Going on ")[1] for warning in warnings] == [
        "with gradient checkpointing.",
        "with 2 of 4 pictures at once.",
    ]


def test_the_failure_is_raised_when_nothing_is_left_to_try(run):
    with pytest.raises(NotFinite):
        Recovery(*run).retry(failing(1, NotFinite(1, "loss", float("nan"), [0])))
    with pytest.raises(OutOfMemory, match="at step 1"):
        Recovery(*run, may_save_memory=False).retry(failing(1, MemoryError()))


def test_after_a_step_memory_runs_out_at_that_step(run):
    run[1].step = 3
    with pytest.raises(OutOfMemory, match="at step 3"):
        Recovery(*run, may_save_memory=False).retry(failing(1, MemoryError()), within_step=False)


def test_spoiled_weights_are_rolled_back_or_end_the_run(run):
    def roll_back():
        run[1].in_optimizer_step = False

    run[1].in_optimizer_step = True
    with pytest.raises(OutOfMemory):
        Recovery(*run).retry(failing(1, MemoryError()))
    warnings = []
    recovery = Recovery(*run, roll_back=roll_back, warn=warnings.append)
    assert recovery.retry(failing(1, MemoryError())) == 7
    assert "Going on from step 0 with" in warnings[0]


def test_other_errors_are_not_taken_for_a_lack_of_memory(run):
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Recovery(*run).retry(failing(1, RuntimeError("shapes do not fit")))


def test_where_memory_ran_out_is_logged_as_text_that_keeps_no_tensor(run, caplog):
    caplog.set_level("INFO")
    Recovery(*run, warn=lambda sentence: None).retry(failing(1, MemoryError("no more")))
    records = [record for record in caplog.records if "memory ran out at step" in record.msg]
    assert len(records) == 1 and records[0].exc_info is None
    assert "in action" in records[0].getMessage() and "no more" in records[0].getMessage()
