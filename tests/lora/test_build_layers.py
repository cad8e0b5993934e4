"""Adapter layers as they are built."""

import pytest
import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, Dropouts, RankAlpha
from lora_trainer.lora.build_layers import build_layers, weight_shapes
from lora_trainer.lora.loha_lokr import LohaLayer, LokrLayer
from lora_trainer.lora.lora_layer import LoraLayer

CLASSES = {"lora": LoraLayer, "loha": LohaLayer, "lokr": LokrLayer}
BASE = {
    "a": torch.nn.Linear(8, 6),
    "b": torch.nn.Conv2d(4, 6, 3),
    "c": torch.nn.Linear(8, 4, bias=False),
}


def built(kind, rank_alphas, seed=0):
    spec = AdapterSpec(kind)
    torch.manual_seed(seed)
    return build_layers(BASE, rank_alphas, spec, Dropouts(spec))


def test_settings_of_parameters_stay():
    linear = torch.nn.Linear(4, 4)
    linear.bias.requires_grad_(False)
    build_layers(
        {"x": linear}, {"x": RankAlpha(1, 1.0)}, AdapterSpec("loha"), Dropouts(AdapterSpec("loha"))
    )
    assert linear.weight.requires_grad and not linear.bias.requires_grad


@pytest.mark.parametrize("kind", CLASSES)
def test_each_layer_is_around_its_own_base_with_its_own_rank(kind):
    ranks = {"a": RankAlpha(2, 2.0), "b": RankAlpha(1, 3.0), "c": RankAlpha(2, 2.0)}
    layers = built(kind, ranks)
    assert list(layers) == ["a", "b", "c"]
    for path, layer in layers.items():
        assert type(layer) is CLASSES[kind] and layer.base_layer is BASE[path]
        shapes = {name: tuple(factor.shape) for name, factor in layer.factors().items()}
        weight = BASE[path].weight.shape
        assert shapes == weight_shapes(weight, ranks[path].rank, AdapterSpec(kind))
        assert not layer.delta_weight().any()


@pytest.mark.parametrize("kind", CLASSES)
def test_weights_are_drawn_by_rank_so_that_a_seed_always_gives_the_same(kind):
    one, other = RankAlpha(2, 2.0), RankAlpha(3, 2.0)
    mixed = built(kind, {"a": one, "b": other, "c": one})
    spec = AdapterSpec(kind)
    torch.manual_seed(0)
    first = build_layers(
        {"a": BASE["a"], "c": BASE["c"]}, {"a": one, "c": one}, spec, Dropouts(spec)
    )
    last = build_layers({"b": BASE["b"]}, {"b": other}, spec, Dropouts(spec))
    for path, layer in {**first, **last}.items():
        for name, factor in layer.factors().items():
            assert torch.equal(factor, mixed[path].factors()[name]), (path, name)
    again = built(kind, {"a": one, "b": other, "c": one}, seed=1)
    assert any(
        not torch.equal(factor, mixed["a"].factors()[name])
        for name, factor in again["a"].factors().items()
    )
