"""Learning-rate curves at their ends and between."""
import math

import pytest
import torch

from lora_trainer.core.optimization import LearningRates, learning_rate_factor, make_optimizer


@pytest.mark.parametrize("name, middle, end", [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0), ("polynomial", 0.25, 0)])
def test_curves(name, middle, end):
    assert learning_rate_factor(name, 0, 0, 100) == 1
    assert learning_rate_factor(name, 50, 0, 100) == pytest.approx(middle)
    assert learning_rate_factor(name, 100, 0, 100) == pytest.approx(end)


def test_restarts_begin_again():
    factors = [learning_rate_factor("cosine_with_restarts", step, 0, 90) for step in range(90)]
    assert factors[0] == factors[30] == factors[60] == 1 and factors[29] < 0.01


def test_warmup_rises_and_the_curve_starts_after_it():
    rates = [learning_rate_factor("cosine", step, 10, 110) for step in range(110)]
    assert rates[:10] == sorted(rates[:10]) and 0 < rates[0] < 0.1 and rates[10] == 1
    assert rates[60] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))


def test_schedule_drives_the_optimizer():
    optimizer = make_optimizer("adamw", [torch.nn.Parameter(torch.zeros(1))], learning_rate=0.1, weight_decay=0.0)
    rates = LearningRates("linear", optimizer, warmup_steps=0, total_steps=2)
    assert [rates.set(step) for step in (1, 0, 1)] == pytest.approx([0.05, 0.1, 0.05])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_unknown_names_are_said():
    with pytest.raises(ValueError, match="optimizer is 'lion'"):
        make_optimizer("lion", [], learning_rate=1, weight_decay=0)
    with pytest.raises(ValueError, match="scheduler is 'wavy'"):
        learning_rate_factor("wavy", 1, 0, 2)
