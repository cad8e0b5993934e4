"""Memory that is traded for time: blocks whose forward is another for a while, and the same
afterwards.
"""

import functools

import pytest
import torch

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
