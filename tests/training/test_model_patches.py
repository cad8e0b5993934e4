"""Everything of ours is put on the model and taken off as one."""

import pytest
import torch

from lora_trainer.training.compute_mode import ComputeMode
from lora_trainer.training.model_patches import ModelPatches
from tests.conftest import TinyModel
from tests.support.training import make_adapters

PLAIN = ComputeMode(torch.float32)
CHECKPOINTED = ComputeMode(torch.float32, gradient_checkpointing=True)


def modules(model):
    """All modules by their paths, and the forward that each has of its own."""
    return {
        path: (module, module.__dict__.get("forward"))
        for path, module in model.parts().named_modules()
        if path  # the dictionary of the parts is made anew each time
    }


@pytest.fixture
def model():
    return TinyModel()


@pytest.fixture
def patches(model):
    return ModelPatches(model, make_adapters(model), PLAIN)


def test_they_are_on_the_model_for_a_while_only(model, patches):
    before = modules(model)
    with torch.no_grad(), patches.applied() as applied:
        assert applied is patches and modules(model) != before and torch.is_grad_enabled()
        patches.revert()
        assert modules(model) == before and not torch.is_grad_enabled()
        patches.apply()
        assert modules(model) != before
    assert modules(model) == before


def test_an_error_takes_them_off(model, patches):
    before = modules(model)
    with pytest.raises(KeyError), patches.applied():
        raise KeyError
    assert modules(model) == before


def test_another_mode_puts_them_on_anew(model, patches):
    before = modules(model)
    with patches.applied():
        plain = modules(model)
        patches.change(CHECKPOINTED)
        assert patches.compute_mode == CHECKPOINTED
        checkpointed = modules(model)
        assert plain.keys() == checkpointed.keys() and plain != checkpointed
    assert modules(model) == before


def test_they_follow_the_model_into_other_objects(model, patches):
    with patches.applied():
        pass
    other = TinyModel()
    model.unet, model.text_encoders = other.unet, other.text_encoders
    untouched = modules(model)
    with patches.applied():
        assert modules(model) != untouched
        assert patches.adapters.parameters()[0].requires_grad
    assert modules(model) == untouched
