"""Which mode is tried next when memory runs out or numbers overflow."""

import pytest
import torch

from lora_trainer.training import compute_mode
from lora_trainer.training.compute_mode import ComputeMode


@pytest.mark.parametrize(
    "weights, dtype, bf16, expected",
    [
        (torch.float32, torch.bfloat16, True, torch.float32),
        (torch.float32, torch.float16, False, torch.float32),
        (torch.float16, torch.float16, True, torch.bfloat16),
        (torch.float16, torch.float16, False, None),
        (torch.float32, torch.float32, True, None),
        (torch.bfloat16, torch.bfloat16, True, None),
    ],
)
def test_ladder_of_numbers(weights, dtype, bf16, expected):
    rung = compute_mode.with_safer_numbers(ComputeMode(dtype), weights, has_bf16=bf16)
    assert (rung[0].dtype if rung else None) == expected
