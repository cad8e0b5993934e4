"""How long steps take. What is done between them is in test_give_way.py and test_snapshots.py."""

import pytest

from lora_trainer.runs.callbacks import StepTimer


def test_the_first_step_counts_only_until_there_is_another():
    timer, means = StepTimer(10.0), []
    for seconds in (9.0, 1.0, 2.0):
        timer.add(seconds)
        means.append(timer.seconds_per_step)
    assert means == [9.0, 1.0, 1.5] and timer.elapsed_seconds == pytest.approx(22.0)
