"""Learning-rate curves: against torch's and transformers' own schedulers, at their ends, and with a
warm-up.
"""

import pytest
import torch

from lora_trainer.training.schedules import learning_rate_factor

STEPS = 100


def rates(make, steps=STEPS) -> list[float]:
    """What another library's scheduler gives, step by step, for a rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def ours(name, warmup=0, steps=STEPS, **form) -> list[float]:
    return [learning_rate_factor(name, step, warmup, steps, **form) for step in range(steps)]


@pytest.mark.parametrize(
    "name, theirs",
    [
        (
            "constant",
            lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        ),
        ("linear", lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)),
        ("cosine", lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)),
        (
            "polynomial",
            lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS, 2.0),
        ),
    ],
)
def test_curves_are_torchs(name, theirs):
    assert ours(name) == pytest.approx(rates(theirs), abs=1e-9)


def test_the_powers_curve_is_torchs():
    assert ours("polynomial", power=0.7) == pytest.approx(
        rates(lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS, 0.7)),
        abs=1e-9,
    )


@pytest.mark.parametrize(
    "name, function, settings, form",
    [
        ("linear", "get_linear_schedule_with_warmup", {}, {}),
        ("cosine", "get_cosine_schedule_with_warmup", {}, {}),
        (
            "cosine_with_restarts",
            "get_cosine_with_hard_restarts_schedule_with_warmup",
            dict(num_cycles=4),
            dict(cycles=4),
        ),
        (
            "polynomial",
            "get_polynomial_decay_schedule_with_warmup",
            dict(lr_end=0.0, power=1.5),
            dict(power=1.5),
        ),
    ],
)
def test_after_the_warmup_the_curves_are_transformers(name, function, settings, form):
    transformers = pytest.importorskip("transformers.optimization")
    theirs = rates(
        lambda optimizer: getattr(transformers, function)(
            optimizer, num_warmup_steps=10, num_training_steps=STEPS, **settings
        )
    )
    assert ours(name, warmup=10, **form)[10:] == pytest.approx(theirs[10:], abs=1e-9)


def test_the_warmup_is_torchs_and_wastes_no_step():
    theirs = rates(lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 11, 1.0, 10))
    assert ours("constant", warmup=10) == pytest.approx(theirs) and theirs[0] > 0


@pytest.mark.parametrize("steps", [3, 10, 17, 100])
def test_one_cycle_is_torchs(steps):
    theirs = rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, steps, cycle_momentum=False
        ),
        steps - 1,
    )
    assert ours("one_cycle", steps=steps)[: steps - 1] == pytest.approx(theirs, rel=1e-9)


def test_one_cycle_ends_as_torchs_does():
    theirs = rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, STEPS + 1, cycle_momentum=False
        ),
        STEPS,
    )
    assert ours("one_cycle", steps=STEPS + 1)[:STEPS] == pytest.approx(theirs, rel=1e-9)
    assert (
        learning_rate_factor("one_cycle", STEPS, 0, STEPS + 1)
        == pytest.approx(1 / 25e4)
        == learning_rate_factor("one_cycle", STEPS + 50, 0, STEPS + 1)
    )


@pytest.mark.parametrize("warmup", [2, 20, 55])
def test_one_cycle_rises_over_the_warmup(warmup):
    theirs = rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, STEPS, pct_start=warmup / STEPS, cycle_momentum=False
        ),
        STEPS - 1,
    )
    assert ours("one_cycle", warmup=warmup)[: STEPS - 1] == pytest.approx(theirs, rel=1e-6)
    assert max(ours("one_cycle", warmup=warmup)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "one_cycle"]
)
@pytest.mark.parametrize("warmup, steps", [(0, 1), (1, 1), (1, 5), (7, 5), (5, 5), (0, 2)])
def test_no_run_is_too_short(name, warmup, steps):
    assert all(0 < factor <= 1 for factor in ours(name, warmup, steps))


def test_restarts_begin_again():
    factors = ours("cosine_with_restarts", steps=90)
    assert factors[0] == factors[30] == factors[60] == 1 and factors[29] < 0.01


def test_an_unknown_name_is_said():
    with pytest.raises(
        ValueError, match="scheduler is 'wavy'; expected one of constant, .*one_cycle"
    ):
        learning_rate_factor("wavy", 1, 0, 2)
