"""Adapters are neutral at first, only swap attributes, and change the model by exactly the weights
that they give out.
"""

import dataclasses
import gc
import weakref

import pytest
import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, RankAlpha
from lora_trainer.lora.adapters import Adapters, count_parameters
from lora_trainer.training.precision import gradient_checkpointing
from tests.support.adapted_models import (
    ATTENTION,
    BLOCK,
    change_in_file,
    everything,
    merged_into,
    outputs,
    scramble,
)

FORMS = [
    AdapterSpec("lora"),
    AdapterSpec("lora", rslora=True),
    AdapterSpec("loha"),
    AdapterSpec("loha", tucker=True),
    AdapterSpec("lokr"),
    AdapterSpec("lokr", lokr_factor=4, rslora=True),
    AdapterSpec("lokr", lokr_both=True, tucker=True),
    AdapterSpec("lora", use_dora=True),
    AdapterSpec("loha", use_dora=True),
    AdapterSpec("lokr", use_dora=True),
]


def name_of(value):
    return (
        "-".join(
            f"{key}={entry}"
            for key, entry in dataclasses.asdict(value).items()
            if entry != getattr(AdapterSpec(), key)
        )
        or "lora"
        if isinstance(value, AdapterSpec)
        else None
    )


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_neutral_start(parts, form):
    """Invariant 3: attached at step 0, every output is bit-identical."""
    before = outputs(parts)
    adapters = Adapters.create(parts, everything(parts), form)
    with adapters.attached():
        assert all(torch.equal(one, other) for one, other in zip(outputs(parts), before))
        assert type(parts.get_submodule(f"{BLOCK}.attn1.to_q")) is not torch.nn.Linear
    assert type(
        parts.get_submodule(f"{BLOCK}.attn1.to_q")
    ) is torch.nn.Linear and "forward" not in vars(parts.get_submodule(ATTENTION))


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("rank", [2, 16])
def test_what_is_given_out_is_what_is_done(parts, form, rank):
    """Outputs with adapters equal those of a model into which the file's change was merged as the
    WebUI's loader does it.
    """
    before = outputs(parts)
    adapters = scramble(Adapters.create(parts, everything(parts, rank), form))
    with adapters.attached():
        adapted = outputs(parts)
    merged_into(parts, adapters)
    for one, other, untouched in zip(adapted, outputs(parts), before):
        assert torch.allclose(
            one, other, rtol=1e-4, atol=1e-4 * other.abs().max()
        ) and not torch.allclose(one, untouched, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_every_layer_learns_from_the_first_step(parts, form):
    adapters = Adapters.create(parts, everything(parts), form)
    with adapters.attached():
        sum(output.square().sum() for output in outputs(parts)).backward()
    for path, layer in adapters._layers.items():
        assert any(
            weight.grad is not None and weight.grad.any()
            for name, weight in layer.named_parameters()
            if "base_layer" not in name
        ), path


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("rank", [1, 40])
def test_count_matches_what_is_built(parts, form, rank):
    shapes = everything(parts, rank)
    adapters = Adapters.create(parts, shapes, form)
    built = sum(parameter.numel() for parameter in adapters.parameters())
    assert (
        count_parameters(parts, shapes, form)
        == built
        == sum(
            tensor.numel() for weights in adapters.weights().values() for tensor in weights.values()
        )
    )


def test_scale_of_rslora_is_folded_into_alpha(parts):
    """arXiv 2312.03732: alpha / sqrt(rank); files and their readers know alpha / rank only."""
    shapes = {f"{BLOCK}.attn1.to_q": RankAlpha(9, 6.0)}
    plain, stabilised = (
        Adapters.create(parts, shapes, AdapterSpec("lora", rslora=on)) for on in (False, True)
    )
    assert plain.alphas == {f"{BLOCK}.attn1.to_q": 6.0} and stabilised.alphas[
        f"{BLOCK}.attn1.to_q"
    ] / 9 == pytest.approx(6 / 3)
    assert torch.equal(plain.parameters()[0], stabilised.parameters()[0])


def test_creating_leaves_flags_marks_and_weights_alone(parts):
    parts["unet"].out[2].weight.requires_grad_(True)
    parts.get_submodule(ATTENTION).in_proj_weight.requires_grad_(True)
    before = {
        name: (tensor.clone(), tensor.data_ptr(), tensor.requires_grad)
        for name, tensor in parts.state_dict(keep_vars=True).items()
    }
    modules = {
        name: (module, type(module), set(vars(module))) for name, module in parts.named_modules()
    }
    adapters = scramble(Adapters.create(parts, everything(parts), AdapterSpec("loha", dropout=0.5)))
    with adapters.attached():
        outputs(parts)[0].sum().backward()
    assert {
        name: (module, type(module), set(vars(module))) for name, module in parts.named_modules()
    } == modules
    for name, tensor in parts.state_dict(keep_vars=True).items():
        assert (
            torch.equal(tensor, before[name][0])
            and (tensor.data_ptr(), tensor.requires_grad) == before[name][1:]
        )
    assert not any(module.training for module in parts["unet"].modules())


def test_no_copy_of_the_base_is_kept(parts):
    """The adapters of a UNet and of an attention hold on to the base's own tensors or to none:
    nothing of it is copied, nothing stays when it moves.
    """
    adapters = Adapters.create(parts, everything(parts))
    own = {tensor.data_ptr() for tensor in parts.state_dict().values()} | {
        parameter.data_ptr() for parameter in adapters.parameters()
    }
    held = {
        tensor.data_ptr()
        for layer in adapters._layers.values()
        for tensor in layer.state_dict().values()
        if tensor.device.type != "meta"
    }
    assert held <= own


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_memory_is_free_as_soon_as_they_are_let_go(parts, kind):
    """Pictures are drawn right after a run; nothing may wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        adapters = Adapters.create(
            parts,
            everything(parts),
            AdapterSpec(kind, dropout=0.1, rank_dropout=0.1, module_dropout=0.1),
        )
        with adapters.attached():
            outputs(parts)
        layers = [weakref.ref(layer) for layer in adapters._layers.values()]
        del adapters
        assert not any(layer() for layer in layers)
    finally:
        gc.enable()


def test_weights_of_the_base_may_move_and_change(parts):
    """A host moves weights by setting `.data`; an attention's projections follow."""
    adapters = scramble(Adapters.create(parts, everything(parts)))
    for parameter in parts.parameters():
        parameter.data = parameter.data.clone() * 0.5
    with adapters.attached():
        adapted = outputs(parts)
    merged_into(parts, adapters)
    assert all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-4 * other.abs().max())
        for one, other in zip(adapted, outputs(parts))
    )


def test_moving_to_the_same_model_in_other_objects(parts):
    torch.manual_seed(7)
    other = torch.nn.ModuleDict(
        {name: type(module)().eval() for name, module in parts.items()}
    ).requires_grad_(False)
    adapters = scramble(Adapters.create(parts, everything(parts)))
    adapters.move_to(other)
    before = outputs(parts)
    with adapters.attached():
        assert all(torch.equal(one, two) for one, two in zip(outputs(parts), before))
        adapted = outputs(other)
    merged_into(other, adapters)
    assert all(
        torch.allclose(one, two, rtol=1e-4, atol=1e-4 * two.abs().max())
        for one, two in zip(adapted, outputs(other))
    )


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_what_it_begins_with_depends_on_the_seed_alone(parts, kind):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = Adapters.create(parts, everything(parts), AdapterSpec(kind), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = (
        Adapters.create(parts, everything(parts), AdapterSpec(kind), seed=seed) for seed in (3, 4)
    )
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters()))
    assert any(
        not torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters())
    )


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_gets_float32_adapters_and_starts_neutral(parts, kind, dtype):
    if dtype == torch.float16 and torch.__version__ < "2.3":
        pytest.skip("this torch computes no float16 on the CPU")
    parts.to(dtype)
    draws = torch.Generator().manual_seed(1)
    texts = torch.randn(2, 77, 12, generator=draws)
    adapters = Adapters.create(parts, everything(parts), AdapterSpec(kind))
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype):
        before = parts["te1"](texts), parts["te2"](texts.to(dtype))
        with adapters.attached():
            after = parts["te1"](texts), parts["te2"](texts.to(dtype))
    assert all(
        torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(before, after)
    )


def test_attached_detaches_after_an_exception(parts):
    names = [name for name, _ in parts.named_parameters()]
    adapters = Adapters.create(parts, everything(parts))
    with pytest.raises(RuntimeError), adapters.attached():
        raise RuntimeError
    assert [name for name, _ in parts.named_parameters()] == names and "forward" not in vars(
        parts.get_submodule(ATTENTION)
    )


def test_only_the_generator_that_is_drawn_from_is_seeded(parts, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "manual_seed_all", lambda seed: pytest.fail("every GPU's generator was seeded")
    )
    torch.default_generator.manual_seed(3)
    expected = torch.rand(2)
    torch.default_generator.manual_seed(3)
    Adapters.create(parts, everything(parts), seed=1)
    assert torch.equal(torch.rand(2), expected)


def test_named_parameters_are_all_parameters(parts):
    adapters = Adapters.create(parts, everything(parts))
    named = adapters.named_parameters()
    assert [id(weight) for weights in named.values() for weight in weights.values()] == [
        id(weight) for weight in adapters.parameters()
    ]
    assert {path: list(weights) for path, weights in named.items()} == {
        path: list(weights) for path, weights in adapters.weights().items()
    }


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_given_out_and_taken_over(parts, form):
    first, second = (
        scramble(Adapters.create(parts, everything(parts), form)),
        Adapters.create(parts, everything(parts), form, seed=9),
    )
    second.load(first.weights())
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters()))
    with pytest.raises(ValueError, match="layers differ"):
        second.load(
            {path: weights for path, weights in first.weights().items() if "te2" not in path}
        )
    wrong = first.weights()
    wrong[f"{BLOCK}.attn1.to_q"] = {
        name: tensor[:-1] for name, tensor in wrong[f"{BLOCK}.attn1.to_q"].items()
    }
    with pytest.raises(ValueError, match="attn1.to_q is"):
        second.load(wrong)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters()))


# --- Dropouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_rank_dropout_of_a_change_built_as_a_whole_is_by_rows(parts, kind):
    path = f"{BLOCK}.attn1.to_q"
    adapters = scramble(
        Adapters.create(parts, {path: RankAlpha(2, 2)}, AdapterSpec(kind, rank_dropout=0.5))
    )
    x = torch.randn(4, 3, 16)
    base = parts.get_submodule(path)(x)
    with adapters.attached(), torch.no_grad():
        change = parts.get_submodule(path)(x) - base
        with adapters.without_dropout():
            full = parts.get_submodule(path)(x) - base
    kept = change.abs().amax((0, 1)) > 1e-6
    assert 0 < kept.sum() < 16 and torch.allclose(change[..., kept], 2 * full[..., kept], atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_dropouts_are_the_same_when_a_block_is_computed_again(parts, kind):
    """Gradient checkpointing runs blocks twice; the gradients are those of one run. The seed
    decides, and nothing is left out when that is switched off.
    """
    adapters = scramble(
        Adapters.create(
            parts,
            everything(parts),
            AdapterSpec(kind, dropout=0.3, rank_dropout=0.3, module_dropout=0.3),
        ),
        0.1,
    )

    def gradients(checkpointed, seed=5):
        with adapters.attached(), gradient_checkpointing(parts, checkpointed):
            torch.manual_seed(seed)
            sum(output.square().mean() for output in outputs(parts)).backward()
        found = [
            None if parameter.grad is None else parameter.grad.clone()
            for parameter in adapters.parameters()
        ]
        for parameter in adapters.parameters():
            parameter.grad = None
        return found

    once, twice, other = gradients(False), gradients(True), gradients(False, seed=6)
    assert all(
        (one is None) == (two is None)
        and (one is None or torch.allclose(one, two, rtol=1e-4, atol=1e-7))
        for one, two in zip(once, twice)
    )
    assert any(
        (one is None) != (two is None)
        or one is not None
        and not torch.allclose(one, two, rtol=1e-2)
        for one, two in zip(once, other)
    )
    with adapters.attached(), adapters.without_dropout():
        assert all(torch.equal(one, two) for one, two in zip(outputs(parts), outputs(parts)))
    plain = Adapters.create(parts, everything(parts), AdapterSpec(kind))
    plain.load(adapters.weights())
    with plain.attached():
        expected = outputs(parts)
    with adapters.attached(), adapters.without_dropout():
        assert all(torch.equal(one, two) for one, two in zip(outputs(parts), expected))


# --- Limit of norms -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_norms_are_limited(parts, form):
    """No change is larger than the limit afterwards, the large ones are exactly there, and the
    small ones are as before.
    """
    adapters = scramble(Adapters.create(parts, everything(parts), form))
    before = changes(parts, adapters)
    norms = sorted(float(change.norm()) for change in before.values())
    limit = (norms[10] + norms[11]) / 2
    large = {path for path, change in before.items() if change.norm() > limit}
    assert adapters.limit_norms(limit) == len(large) and 0 < len(large) < len(before)
    for path, change in changes(parts, adapters).items():
        wanted = before[path] * (limit / before[path].norm()) if path in large else before[path]
        assert torch.allclose(change, wanted, rtol=1e-4, atol=1e-6 * limit)


def changes(parts, adapters):
    own = {path: adapters._layers[path].base_layer.weight.shape for path in adapters.rank_alphas}
    return {
        path: change_in_file(weights, adapters.alphas[path], own[path])
        for path, weights in adapters.weights().items()
    }


def test_forms_are_plain_values():
    """A state on disk keeps them as a mapping."""
    assert AdapterSpec(**dataclasses.asdict(FORMS[-1])) == FORMS[-1]
