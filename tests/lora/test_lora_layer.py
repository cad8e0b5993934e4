"""LoRA layers: their change, dropouts per picture and layer, and kohya's limit of norms."""

import pytest
import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, Dropouts, RankAlpha
from lora_trainer.lora.adapters import Adapters
from lora_trainer.lora.lora_layer import build_lora_layers
from tests.support.adapted_models import BLOCK, scramble


def test_rank_dropout_is_per_picture_and_keeps_the_mean(parts):
    """Each picture's change is the one of a LoRA with some ranks gone and the rest scaled up by 1 /
    (1 - rate).
    """
    path = f"{BLOCK}.attn1.to_q"
    adapters = scramble(
        Adapters.create(parts, {path: RankAlpha(2, 2)}, AdapterSpec(rank_dropout=0.25))
    )
    down, up = (weight.double() for weight in adapters.weights()[path].values())
    x = torch.randn(64, 3, 16)
    base = parts.get_submodule(path)(x)
    with adapters.attached(), torch.no_grad():
        change = (parts.get_submodule(path)(x) - base).double()
    possible = torch.stack(
        [
            torch.einsum(
                "bti,ri,or,r->bto", x.double(), down, up, torch.tensor([a, b]).double() / 0.75
            )
            for a in (0, 1)
            for b in (0, 1)
        ]
    )
    distance = (possible - change).abs().amax((2, 3))  # (4 choices of ranks, 64 pictures)
    assert distance.min(0).values.max() < 1e-5 and len(set(distance.argmin(0).tolist())) == 4


def test_module_dropout_leaves_whole_layers_out(parts):
    path = f"{BLOCK}.attn1.to_q"
    for kind in ("lora", "loha", "lokr"):
        adapters = scramble(
            Adapters.create(parts, {path: RankAlpha(2, 2)}, AdapterSpec(kind, module_dropout=0.5))
        )
        x = torch.randn(2, 3, 16)
        base = parts.get_submodule(path)(x)
        with adapters.attached(), torch.no_grad():
            drawn = [parts.get_submodule(path)(x) for _ in range(40)]
            with adapters.without_dropout():
                full = parts.get_submodule(path)(x)
        out = sum(torch.equal(y, base) for y in drawn)
        assert (
            8 <= out <= 32
            and sum(torch.equal(y, full) for y in drawn) == 40 - out
            and not torch.equal(base, full)
        )


def test_kohyas_norm_limit(parts):
    """Its `scale_weight_norms`: both factors are scaled by the square root of limit / |alpha / rank
    * up @ down|.
    """
    path = f"{BLOCK}.attn1.to_q"
    adapters = scramble(Adapters.create(parts, {path: RankAlpha(4, 2)}), 1.0)
    down, up = adapters.weights()[path].values()
    ratio = (0.5 / torch.linalg.matrix_norm((up @ down).double() * 2 / 4)) ** 0.5
    assert adapters.limit_norms(0.5) == 1
    for now, then in zip(adapters.weights()[path].values(), (down, up)):
        assert torch.allclose(now.double(), then.double() * ratio, rtol=1e-5)


def layer_on(base, rank_alpha, spec):
    """Build one layer, with factors of which none is 0."""
    [layer] = build_lora_layers([base], rank_alpha, spec, Dropouts(spec))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in layer.factors().values():
            factor.copy_(torch.randn(factor.shape, generator=draws))
    return layer


@pytest.mark.parametrize("rslora, scale", [(False, 3 / 4), (True, 3 / 2)])
def test_a_layer_adds_its_scaled_change_to_the_base(rslora, scale):
    base, inputs = torch.nn.Linear(8, 6), torch.randn(2, 5, 8)
    layer = layer_on(base, RankAlpha(4, 3.0), AdapterSpec(rslora=rslora))
    down, up = layer.factors().values()
    assert (down.shape, up.shape, layer.scale) == ((4, 8), (6, 4), scale)
    expected = base(inputs) + scale * inputs @ down.mT @ up.mT
    assert torch.allclose(layer(inputs), expected, atol=1e-5)
    assert torch.allclose(layer.change(dropouts=None), scale * up @ down, atol=1e-6)
    assert layer.change_norm().item() == pytest.approx((scale * up @ down).norm().item(), rel=1e-5)


def test_a_convolution_adds_the_convolution_of_its_change():
    base, inputs = torch.nn.Conv2d(4, 6, 3, padding=1, stride=2), torch.randn(2, 4, 8, 8)
    layer = layer_on(base, RankAlpha(2, 2.0), AdapterSpec())
    change = layer.change(dropouts=None)
    assert change.shape == base.weight.shape
    expected = base(inputs) + torch.nn.functional.conv2d(inputs, change, padding=1, stride=2)
    assert torch.allclose(layer(inputs), expected, atol=1e-4)


def test_factors_are_float32_on_a_base_of_any_type_and_the_base_keeps_its_flags():
    base = torch.nn.Linear(8, 6).to(torch.bfloat16)
    base.weight.requires_grad_(False)
    layer = layer_on(base, RankAlpha(2, 2.0), AdapterSpec())
    assert {factor.dtype for factor in layer.factors().values()} == {torch.float32}
    assert not base.weight.requires_grad and base.bias.requires_grad
    assert all(factor.requires_grad for factor in layer.factors().values())


def test_another_base_of_the_same_shape_takes_the_place_of_the_first():
    inputs, other = torch.randn(3, 8), torch.nn.Linear(8, 6)
    layer = layer_on(torch.nn.Linear(8, 6), RankAlpha(2, 2.0), AdapterSpec())
    layer.set_base_layer(other)
    expected = other(inputs) + inputs @ layer.change(dropouts=None).mT
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


def test_input_dropout_is_off_where_dropouts_are_off():
    spec = AdapterSpec(dropout=0.5)
    dropouts, inputs = Dropouts(spec), torch.ones(4, 64)
    [layer] = build_lora_layers([torch.nn.Linear(64, 6)], RankAlpha(2, 2.0), spec, dropouts)
    torch.nn.init.ones_(layer.up.weight)
    torch.nn.init.ones_(layer.down.weight)
    dropped = layer(inputs) - layer.base_layer(inputs)
    dropouts.enabled = False
    full = layer(inputs) - layer.base_layer(inputs)
    assert torch.allclose(full, torch.full_like(full, 128.0))
    assert not torch.allclose(dropped, full) and not torch.allclose(dropped[0], dropped[1])
