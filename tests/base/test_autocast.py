"""No autocast where a torch knows none."""

import contextlib

import torch

from lora_trainer.base.autocast import autocast, no_autocast


def test_other_devices_have_none_to_switch_off():
    assert isinstance(no_autocast(torch.device("mps")), contextlib.nullcontext)
    assert isinstance(autocast(torch.device("mps"), torch.float32), contextlib.nullcontext)


def test_what_surrounds_it_does_not_count():
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
        with no_autocast(torch.device("cpu")):
            assert (ones @ ones).dtype == torch.float32
        with autocast(torch.device("cpu"), torch.bfloat16):
            assert (ones @ ones).dtype == torch.bfloat16
