"""Layers as peft builds them and as we use them: their sizes, scale and norm, on layers of several
shapes.
"""

import pytest
import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, Dropouts, RankAlpha, is_full_lokr
from lora_trainer.lora.build_layers import build_layers, weight_shapes

LAYERS = {
    "linear": lambda: torch.nn.Linear(160, 320),
    "prime": lambda: torch.nn.Linear(127, 96, bias=False),
    "conv": lambda: torch.nn.Conv2d(32, 48, 3, padding=1),
    "1x1": lambda: torch.nn.Conv2d(64, 64, 1),
}
FORMS = [
    AdapterSpec("lora"),
    AdapterSpec("loha"),
    AdapterSpec("loha", tucker=True),
    AdapterSpec("lokr"),
    AdapterSpec("lokr", lokr_factor=8),
    AdapterSpec("lokr", lokr_factor=4, lokr_both=True, tucker=True),
    *(AdapterSpec(kind, use_dora=True) for kind in ("lora", "loha", "lokr")),
]


def built(form, shape, name="linear"):
    layer = build_layers({"x": LAYERS[name]()}, {"x": shape}, form, Dropouts(form))["x"]
    with torch.no_grad():
        for number, parameter in enumerate(layer.trained_weights().values()):
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            )
    return layer


@pytest.mark.parametrize(
    "form",
    FORMS,
    ids=lambda form: "-".join(
        map(str, (form.kind, form.lokr_factor, form.lokr_both, form.tucker, form.use_dora))
    ),
)
@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_those_said_beforehand_and_norms_those_of_the_change(name, form):
    for rank in (1, 16, 200):
        layer = built(form, RankAlpha(rank, 3.0), name)
        assert all(weight.dtype == torch.float32 for weight in layer.trained_weights().values())
        assert {
            part: tuple(weight.shape) for part, weight in layer.trained_weights().items()
        } == weight_shapes(layer.base_layer.weight.shape, rank, form)
        change = layer.delta_weight()
        assert (
            change.shape == layer.base_layer.weight.shape
            and layer.change_norm().item() == pytest.approx(change.double().norm().item(), rel=1e-4)
        )


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("rslora", [False, True])
def test_scale(kind, rslora):
    """The change is alpha / rank, or alpha / sqrt(rank), times that of alpha = rank; peft 0.13
    leaves LoKr unscaled.
    """
    plain, scaled = (
        built(AdapterSpec(kind), RankAlpha(4, 4.0)),
        built(AdapterSpec(kind, rslora=rslora), RankAlpha(4, 6.0)),
    )
    assert torch.allclose(
        scaled.delta_weight(), plain.delta_weight() * (6 / 2 if rslora else 6 / 4), rtol=1e-5
    )


def test_whole_matrices_have_the_scale_1():
    """LyCORIS's rule and the WebUI's: without a rank in the file there is nothing that alpha could
    be divided by.
    """
    layer = built(AdapterSpec("lokr"), RankAlpha(64, 1.0))
    weights = layer.trained_weights()
    assert is_full_lokr(weights) and torch.allclose(
        layer.delta_weight(), torch.kron(weights["lokr_w1"], weights["lokr_w2"])
    )


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_changes_are_float32_under_autocast(kind):
    layer = built(AdapterSpec(kind), RankAlpha(4, 4.0))
    expected = layer.delta_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.delta_weight(), expected)
        assert layer(torch.randn(2, 3, 160)).dtype == torch.bfloat16


# --- DoRA -----------------------------------------------------------------------------------------


def webui_change(change, weight, dora_scale):
    """What the WebUI's loader makes of a scaled change (extensions-builtin/Lora/network.py,
    apply_weight_decompose), by columns in numbers of their own: each column of the changed weight
    gets the norm that the file says, and the old weight is taken away again.
    """
    merged = (change + weight).double()
    columns = [merged[:, at] for at in range(merged.shape[1])]
    scaled = [
        column * (scale / column.norm())
        for column, scale in zip(columns, dora_scale.double().flatten())
    ]
    return torch.stack(scaled, 1) - weight.double()


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_dora_does_what_the_webui_computes_from_its_file(name, kind):
    layer = built(AdapterSpec(kind, use_dora=True), RankAlpha(4, 2.0), name)
    weight, size = (
        layer.base_layer.weight,
        {"linear": (3, 160), "prime": (3, 127), "conv": (2, 32, 8, 8), "1x1": (2, 64, 8, 8)}[name],
    )
    with torch.no_grad():
        layer.dora_scale.abs_()
        wanted = webui_change(layer.delta_weight(), weight, layer.dora_scale)
        found = layer.changed_weight(weight).double() - weight.double()
        assert ((found - wanted).norm() / wanted.norm()).item() < 1e-6
        inputs = torch.randn(size, generator=torch.Generator().manual_seed(5))
        base = layer.base_layer
        changed = (
            torch.nn.functional.conv2d(
                inputs, (weight + wanted).float(), base.bias, base.stride, base.padding
            )
            if inputs.dim() == 4
            else torch.nn.functional.linear(inputs, (weight + wanted).float(), base.bias)
        )
        assert torch.allclose(layer(inputs), changed, rtol=1e-4, atol=1e-4 * changed.abs().max())


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_a_dora_is_neutral_at_first_and_its_magnitudes_learn(kind):
    base = LAYERS["linear"]()
    form, inputs = AdapterSpec(kind, use_dora=True), torch.randn(3, 160)
    before = base(inputs)
    layer = build_layers({"x": base}, {"x": RankAlpha(4, 2.0)}, form, Dropouts(form))["x"]
    after = layer(inputs)
    assert torch.equal(after, before) and torch.equal(
        layer.changed_weight(base.weight), base.weight
    )
    after.square().sum().backward()
    assert layer.dora_scale.grad.abs().min() > 0 and layer.dora_scale.shape == (1, 160)


def test_an_input_that_the_base_does_not_use_stays_a_number():
    base = LAYERS["linear"]()
    base.weight.data[:, 7] = 0
    form = AdapterSpec(use_dora=True)
    layer = build_layers({"x": base}, {"x": RankAlpha(4, 2.0)}, form, Dropouts(form))["x"]
    inputs = torch.randn(3, 160)
    assert (
        torch.equal(layer(inputs), base(inputs))
        and torch.isfinite(layer.changed_weight(base.weight)).all()
    )


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("name, sizes", [("linear", (160, 320)), ("conv", (32, 48))])
def test_hosts_can_measure_a_layer_as_if_it_were_the_base(name, sizes, kind):
    layer = built(AdapterSpec(kind), RankAlpha(2, 2.0), name)
    assert (layer.in_features, layer.out_features) == sizes
    assert layer.weight is layer.base_layer.weight and layer.bias is layer.base_layer.bias
