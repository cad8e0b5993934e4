"""Which packages optimizers need, and which versions of them."""

import pytest
import torch

from lora_trainer.training import optimizer_kinds
from lora_trainer.training.optimizers import optimizer_choices


def test_old_torch_is_offered_the_bitsandbytes_that_loads_with_it(monkeypatch):
    """Newer ones fail at import under torch 2.1, and take peft with them."""
    monkeypatch.setattr(optimizer_kinds, "torch_version", lambda: (2, 1))
    assert optimizer_choices()[1]["needs"].endswith("--no-deps bitsandbytes==0.45.5")
    monkeypatch.setattr(optimizer_kinds, "torch_version", lambda: (2, 10))
    assert optimizer_choices()[1]["needs"].endswith("--no-deps bitsandbytes")


@pytest.mark.parametrize(
    "version, expected", [("2.1.2+cu121", (2, 1)), ("2.15.0", (2, 15)), ("2.4.0a0", (2, 4))]
)
def test_versions_are_numbers(version, expected, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    assert optimizer_kinds.torch_version() == expected
