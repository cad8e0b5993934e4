"""Adapters are neutral at first, only swap attributes, and learn in the layers that were asked for."""
import pytest
import torch

from lora_trainer.core.adapters import Adapters, count_parameters, plan_shapes, target_paths

BLOCK = "input_blocks.1.1.transformer_blocks.0"


@pytest.fixture
def inputs():
    draws = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=draws), torch.tensor([10, 900]), torch.randn(2, 77, 12, generator=draws)


@pytest.mark.parametrize("targets, expected", [("attention", 8), ("attention+feed-forward", 12), ("all", 14)])
def test_targets(host, targets, expected):
    paths = target_paths(host.model.unet, targets)
    assert len(paths) == expected
    assert f"{BLOCK}.attn2.to_out.0" in paths and (f"{BLOCK}.ff.net.0.proj" in paths) == (targets != "attention")
    assert not any(path.startswith(("time_embed", "out", "input_blocks.0")) for path in paths)


def test_neutral_start(host, inputs):
    """Invariant 3: attached at step 0, the prediction is bit-identical."""
    unet = host.model.unet
    expected = unet(*inputs)
    adapters = Adapters.create(unet, plan_shapes(unet, targets="all", rank=4, alpha=8))
    with adapters.attached():
        assert torch.equal(unet(*inputs), expected)
        assert type(unet.get_submodule(f"{BLOCK}.attn1.to_q")) is not torch.nn.Linear
    assert type(unet.get_submodule(f"{BLOCK}.attn1.to_q")) is torch.nn.Linear


def test_scale_is_alpha_over_rank(host, inputs):
    """The prediction with adapters equals the one of a model whose weights are W + alpha/rank * up @ down."""
    unet = host.model.unet
    adapters = Adapters.create(unet, plan_shapes(unet, targets="attention", rank=4, alpha=2))
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    with adapters.attached():
        adapted = unet(*inputs)
    saved = {path: unet.get_submodule(path).weight.clone() for path in adapters.weights()}
    with torch.no_grad():
        for path, (down, up) in adapters.weights().items():
            unet.get_submodule(path).weight += 2 / 4 * up @ down
        merged = unet(*inputs)
        for path, weight in saved.items():
            unet.get_submodule(path).weight.copy_(weight)
    assert torch.allclose(adapted, merged, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(adapted, unet(*inputs), rtol=1e-3)


def test_creating_leaves_flags_and_marks_alone(host):
    unet = host.model.unet
    unet.out[2].weight.requires_grad_(False)
    Adapters.create(unet, plan_shapes(unet, targets="all", rank=4, alpha=4), dropout=0.5)
    assert not hasattr(unet, "peft_config")
    assert not unet.out[2].weight.requires_grad and unet.out[2].bias.requires_grad
    assert not any(module.training for module in unet.modules())


def test_down_weights_depend_on_the_seed_alone(host):
    torch.manual_seed(1)
    first = Adapters.create(host.model.unet, plan_shapes(host.model.unet, targets="attention", rank=4, alpha=4), seed=3).weights()
    torch.manual_seed(2)
    again = Adapters.create(host.model.unet, plan_shapes(host.model.unet, targets="attention", rank=4, alpha=4), seed=3).weights()
    other = Adapters.create(host.model.unet, plan_shapes(host.model.unet, targets="attention", rank=4, alpha=4), seed=4).weights()
    path = f"{BLOCK}.attn1.to_q"
    assert torch.equal(first[path][0], again[path][0]) and not torch.equal(first[path][0], other[path][0])
    assert not first[path][1].any()


def test_half_precision_base_gets_fp32_adapters(host):
    unet = host.model.unet.half()
    assert {parameter.dtype for parameter in Adapters.create(unet, plan_shapes(unet, targets="all", rank=4, alpha=4)).parameters()} == {torch.float32}


def test_attached_detaches_after_an_exception(host):
    adapters = Adapters.create(host.model.unet, plan_shapes(host.model.unet, targets="all", rank=4, alpha=4))
    with pytest.raises(RuntimeError), adapters.attached():
        raise RuntimeError
    assert not any("lora" in name for name, _ in host.model.unet.named_parameters())


def test_count_matches_what_is_built(host):
    adapters = Adapters.create(host.model.unet, plan_shapes(host.model.unet, targets="all", rank=4, alpha=4))
    assert count_parameters(host.model.unet, targets="all", rank=4) == sum(parameter.numel() for parameter in adapters.parameters())


def test_no_layers_is_said(host):
    with pytest.raises(ValueError, match="no layer that could learn"):
        Adapters.create(torch.nn.Linear(2, 2), plan_shapes(torch.nn.Sequential(torch.nn.Linear(2, 2)), targets="attention", rank=1, alpha=1))
