"""Optimizers on weights of a test's own."""

import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.training.optimizer_kinds import KINDS
from lora_trainer.training.optimizers import check_with_step, make_optimizer

CPU = torch.device("cpu")


RATES = {"unet": 1e-2, "text_encoder": 5e-3}


def needs(name: str) -> None:
    """Skip unless the package of an optimizer is there and works on the CPU; bitsandbytes' older
    versions need a GPU.
    """
    package = KINDS[name].module.split(".")[0]
    if package != "torch":
        pytest.importorskip(package, exc_type=ImportError)
    if name == "adamw8bit":
        try:
            check_with_step(name, "", CPU)
        except Refused as refused:
            pytest.skip(refused.message)


def groups_of(**sizes) -> dict:
    return {
        name: [torch.nn.Parameter(torch.linspace(-1, 1, count).reshape(2, -1))]
        for name, count in sizes.items()
    }


def rates_for(name: str, names) -> dict:
    return {group: 1.0 if KINDS[name].finds_rate else RATES[group] for group in names}


def make(name="adamw", *, arguments="", weight_decay=0.0, learning_rates=None, **sizes):
    groups = groups_of(**(sizes or {"unet": 8}))
    return make_optimizer(
        name,
        groups,
        learning_rates=learning_rates or rates_for(name, groups),
        weight_decay=weight_decay,
        arguments=arguments,
    )


def fall(optimizer, steps: int) -> float:
    """Walk down |x - 3|^2 and return how far it is then, of how far it was."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = sum(float((parameter.detach() - 3).square().sum()) for parameter in parameters)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = 2 * (parameter.detach() - 3)
        optimizer.step()
    return sum(float((parameter.detach() - 3).square().sum()) for parameter in parameters) / before
