"""Learning rates: those of the schedule, those that optimizers find, and unusual ones."""

import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.training.learning_rates import LearningRates, effective_rate, rate_warnings
from tests.support.optimizers import fall, make, needs


def test_adafactor_may_find_its_rate_itself():
    needs("adafactor")
    optimizer = make(
        "adafactor", arguments="relative_step=True warmup_init=True", unet=8, text_encoder=4
    )
    rates = LearningRates("cosine", optimizer, warmup_steps=0, total_steps=10)
    rates.set(3)
    assert optimizer.param_groups[0]["lr"] is None and effective_rate(optimizer) == 0.0
    fall(optimizer, 3)
    assert effective_rate(optimizer) == pytest.approx(3e-6)


@pytest.mark.parametrize("name", ["prodigy", "dadaptation"])
def test_a_found_rate_is_told_and_grows(name):
    needs(name)
    optimizer = make(name, arguments="d0=1e-5")
    rates = LearningRates("linear", optimizer, warmup_steps=0, total_steps=2)
    rates.set(1)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert effective_rate(optimizer) == pytest.approx(0.5e-5)
    fall(optimizer, 30)
    assert effective_rate(optimizer) > 1e-4


@pytest.mark.parametrize("name", ["prodigy", "dadaptation"])
def test_one_rate_is_found_for_all_groups(name):
    needs(name)
    with pytest.raises(
        Refused,
        match=(
            r"finds one learning rate for everything, and 1 \(unet\) and 5e-05 \(text_encoder\)"
            r" differ.*the same, usually 1; or 0"
        ),
    ) as caught:
        make(name, learning_rates={"unet": 1.0, "text_encoder": 5e-5}, unet=8, text_encoder=8)
    assert caught.value.field == "text_encoder_lr"
    optimizer = make(
        name,
        learning_rates={"unet": 1.0, "text_encoder": 0.0},
        weight_decay=0.1,
        unet=8,
        text_encoder=8,
    )
    still = optimizer.param_groups[1]["params"][0].detach().clone()
    fall(optimizer, 5)
    assert torch.equal(optimizer.param_groups[1]["params"][0], still)


def rates_at(rates, optimizer, *steps):
    """The first group's rate at each of the steps."""
    found = []
    for step in steps:
        rates.set(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_every_group_keeps_its_own_highest_rate():
    optimizer = make(unet=8, text_encoder=8)
    rates = LearningRates("linear", optimizer, warmup_steps=0, total_steps=2)
    assert rates_at(rates, optimizer, 1, 0, 1) == pytest.approx([0.005, 0.01, 0.005])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.0025])
    assert effective_rate(optimizer) == pytest.approx(0.005)


def test_cycles_and_power_are_the_settings():
    optimizer = make()
    restarts = LearningRates(
        "cosine_with_restarts", optimizer, warmup_steps=0, total_steps=10, cycles=5
    )
    assert rates_at(restarts, optimizer, 2) == pytest.approx([1e-2])
    optimizer = make()
    power = LearningRates("polynomial", optimizer, warmup_steps=0, total_steps=10, power=3.0)
    assert rates_at(power, optimizer, 5) == pytest.approx([1e-2 / 8])


def test_schedule_free_only_warms_up():
    needs("schedulefree")
    optimizer = make("schedulefree")
    rates = LearningRates("cosine", optimizer, warmup_steps=3, total_steps=10)
    assert rates_at(rates, optimizer, 0, 3, 9) == pytest.approx([0.0025, 0.01, 0.01])


@pytest.mark.parametrize(
    "name, rate, scheduler, said",
    [
        ("prodigy", 1e-4, "cosine", "learns next to nothing. 1 is usual"),
        ("adamw", 1.0, "cosine", "will break the pictures"),
        ("lion", 1e-4, "cosine", "third to a tenth"),
        ("schedulefree", 1e-3, "cosine", "cosine is not used"),
        ("adamw", 1e-4, "cosine", ""),
        ("prodigy", 1.0, "cosine", ""),
        ("schedulefree", 1e-3, "constant", ""),
    ],
)
def test_unusual_settings_are_remarked(name, rate, scheduler, said):
    remarks = rate_warnings(name, learning_rates={"unet": rate}, scheduler=scheduler)
    assert (said in remarks[0]) if said else remarks == []
