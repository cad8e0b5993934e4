"""The precision of a step; and blocks whose forward is another for a while, which saves memory."""

import functools

import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.training import precision
from lora_trainer.training.precision import gradient_checkpointing


def blocks_of(host):
    return [
        module
        for module in host.model.parts().modules()
        if type(module).__name__ in ("ResBlock", "BasicTransformerBlock", "CLIPEncoderLayer")
    ]


def test_blocks_are_checkpointed_for_a_while(host):
    blocks = blocks_of(host)
    with gradient_checkpointing(host.model.parts()):
        assert len(blocks) == 3 and all("forward" in vars(block) for block in blocks)
    assert not any("forward" in vars(block) for block in blocks)
    with gradient_checkpointing(host.model.parts(), False):
        assert not any("forward" in vars(block) for block in blocks)


def test_a_forward_that_others_gave_a_block_is_computed_and_comes_back(host):
    block, calls = blocks_of(host)[0], []

    def theirs(block, *args):
        calls.append(torch.is_grad_enabled())
        return type(block).forward(block, *args)

    block.forward = others = functools.partial(theirs, block)
    inputs, embedding = torch.randn(1, 16, 8, 8, requires_grad=True), torch.randn(1, 16)
    with pytest.raises(KeyError), gradient_checkpointing(host.model.parts()):
        block(inputs, embedding).sum().backward()
        assert len(calls) == 2 and inputs.grad is not None  # once more in the backward pass
        raise KeyError
    assert vars(block)["forward"] is others


CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    "requested, device, weights, bf16, expected",
    [
        ("auto", CPU, FLOAT32, True, FLOAT32),
        ("auto", CPU, FLOAT16, True, BFLOAT16),
        ("auto", CUDA, FLOAT32, True, BFLOAT16),
        ("auto", CUDA, FLOAT32, False, FLOAT16),
        ("auto", CUDA, FLOAT16, True, FLOAT16),
        ("auto", MPS, FLOAT32, True, FLOAT32),
        ("no", CUDA, FLOAT32, True, FLOAT32),
        ("fp16", CUDA, FLOAT32, True, FLOAT16),
        ("bf16", CPU, FLOAT32, False, BFLOAT16),
        ("bf16", CUDA, FLOAT16, True, BFLOAT16),
        ("fp16", CPU, FLOAT32, True, "needs a GPU"),
        ("bf16", CUDA, FLOAT32, False, "has no bf16"),
        ("no", CUDA, FLOAT16, True, "loaded as float16"),
    ],
)
def test_the_precision_of_steps(monkeypatch, requested, device, weights, bf16, expected):
    monkeypatch.setattr(precision, "has_bf16", lambda device: bf16)
    if isinstance(expected, torch.dtype):
        assert precision.resolve(requested, device=device, weights=weights) == expected
    else:
        with pytest.raises(Refused, match=expected) as caught:
            precision.resolve(requested, device=device, weights=weights)
        assert caught.value.field == "mixed_precision"
