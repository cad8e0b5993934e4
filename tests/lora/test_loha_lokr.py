"""Our LoHa and LoKr layers beside peft's: the same initial weights, changes and gradients, bit for
bit.
"""

import pytest
import torch
from peft import LoHaConfig, LoKrConfig
from peft.tuners.loha import LoHaModel
from peft.tuners.lokr import LoKrModel
from peft.tuners.lokr.layer import factorization as peft_factorization

from lora_trainer.lora.adapter_layers import AdapterSpec, Dropouts, RankAlpha
from lora_trainer.lora.build_layers import build_layers
from lora_trainer.lora.loha_lokr import factorization

LAYERS = {
    "linear": lambda: torch.nn.Linear(48, 96),
    "conv": lambda: torch.nn.Conv2d(32, 48, 3, padding=1),
    "1x1": lambda: torch.nn.Conv2d(16, 24, 1),
}
SPECS = [
    AdapterSpec("loha"),
    AdapterSpec("loha", tucker=True),
    AdapterSpec("lokr"),
    AdapterSpec("lokr", lokr_factor=4),
    AdapterSpec("lokr", lokr_factor=4, lokr_both=True, tucker=True),
]


def seeded_layers(dtype):
    torch.manual_seed(1)
    return [make().to(dtype) for make in LAYERS.values()]


def peft_layers(spec, rank_alpha, dtype):
    container = torch.nn.ModuleList(seeded_layers(dtype))
    torch.manual_seed(2)
    common = dict(
        r=rank_alpha.rank,
        alpha=rank_alpha.alpha,
        use_effective_conv2d=spec.tucker,
        target_modules=r"\d+",
    )
    if spec.kind == "loha":
        LoHaModel(container, LoHaConfig(**common), "default")
    else:
        factors = dict(decompose_both=spec.lokr_both, decompose_factor=spec.lokr_factor)
        LoKrModel(container, LoKrConfig(**common, **factors), "default")
    return list(container)


def our_layers(spec, rank_alpha, dtype):
    base_layers = {str(at): layer for at, layer in enumerate(seeded_layers(dtype))}
    torch.manual_seed(2)
    rank_alphas = dict.fromkeys(base_layers, rank_alpha)
    return list(build_layers(base_layers, rank_alphas, spec, Dropouts(spec)).values())


def peft_factors(layer):
    names = layer.adapter_layer_names
    return {name: getattr(layer, name)["default"] for name in names if len(getattr(layer, name))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rank", [2, 40])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_initial_weights_are_drawn_as_peft_does(spec, rank, dtype):
    rank_alpha = RankAlpha(rank, 3.0)
    theirs = peft_layers(spec, rank_alpha, dtype)
    for our_layer, their_layer in zip(our_layers(spec, rank_alpha, dtype), theirs, strict=True):
        expected = peft_factors(their_layer)
        assert our_layer.factors().keys() == expected.keys()
        for name, factor in our_layer.factors().items():
            assert factor.dtype == torch.float32 and torch.equal(factor, expected[name].float())
            assert factor.requires_grad


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_change_and_gradients_are_those_of_peft(spec):
    rank_alpha = RankAlpha(2, 3.0)
    theirs = peft_layers(spec, rank_alpha, torch.float32)
    for our_layer, their_layer in zip(
        our_layers(spec, rank_alpha, torch.float32), theirs, strict=True
    ):
        expected = peft_factors(their_layer)
        with torch.no_grad():
            for number, (name, factor) in enumerate(our_layer.factors().items()):
                generator = torch.Generator().manual_seed(number)
                factor.copy_(torch.randn(factor.shape, generator=generator))
                expected[name].copy_(factor)
        change, their_change = our_layer.delta_weight(), their_layer.get_delta_weight("default")
        if spec.kind == "lokr" and not torch.equal(change, their_change):
            their_change = their_change * our_layer.scale  # peft 0.13 leaves LoKr unscaled
        assert torch.equal(change, their_change)
        towards = torch.randn(change.shape, generator=torch.Generator().manual_seed(99))
        (change * towards).sum().backward()
        (their_change * towards).sum().backward()
        for name, factor in our_layer.factors().items():
            assert torch.equal(factor.grad, expected[name].grad), name


@pytest.mark.parametrize("factor", [-1, 0, 1, 2, 3, 4, 7, 8, 16, 100, 128])
def test_dimensions_are_split_as_peft_does(factor):
    for dimension in [*range(1, 400), 640, 768, 1024, 1280, 2048, 2560, 5120, 10240]:
        assert factorization(dimension, factor) == peft_factorization(dimension, factor)
