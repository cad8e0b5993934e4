"""Adapters are neutral at first, only swap attributes, and change the model by exactly the weights
that they give out.
"""

import dataclasses
import functools
import gc
import weakref

import pytest
import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, RankAlpha
from lora_trainer.lora.adapters import Adapters, count_parameters
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
from lora_trainer.training.precision import gradient_checkpointing
from tests.support.open_clip_text import OpenClipText

BLOCK = "unet.input_blocks.1.1.transformer_blocks.0"
ATTENTION = "te2.transformer.resblocks.0.attn"
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


@pytest.fixture
def parts(host):
    """UNet, a transformers text encoder and an open_clip one."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict({**host.model.parts(), "te2": OpenClipText().eval()}).requires_grad_(
        False
    )


def everything(parts, rank=2, alpha=3.0, targets="all"):
    return assign_ranks(parts, LayerSettings(targets, rank, alpha, text_encoder=True))


def outputs(parts):
    draws = torch.Generator().manual_seed(1)
    texts = torch.randn(2, 77, 12, generator=draws)
    return (
        parts["unet"](torch.randn(2, 4, 8, 8, generator=draws), torch.tensor([10, 900]), texts),
        parts["te1"](texts),
        parts["te2"](texts),
    )


def scramble(adapters, size=0.3):
    """Give every weight a number, so that nothing is zero."""
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters()):
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * size
            )
        for layer in adapters._layers.values():
            if layer.dora_scale is not None:
                layer.dora_scale.abs_().add_(0.1)
    return adapters


def change_in_file(weights, alpha, size):
    """The change of a weight as the WebUI's loader computes it from a file's tensors, written anew
    in numbers of one axis each (kron as an outer product).
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    out, inputs = size[0], size[1:].numel()
    if "lora_down.weight" in w:
        return (
            torch.einsum(
                "or,ri->oi", w["lora_up.weight"].flatten(1), w["lora_down.weight"].flatten(1)
            ).reshape(size)
            * alpha
            / len(w["lora_down.weight"])
        )
    if "hada_t1" in w:
        return (
            torch.einsum("abkl,ao,bi->oikl", w["hada_t1"], w["hada_w1_a"], w["hada_w1_b"])
            * torch.einsum("abkl,ao,bi->oikl", w["hada_t2"], w["hada_w2_a"], w["hada_w2_b"])
            * alpha
            / len(w["hada_w1_b"])
        )
    if "hada_w1_a" in w:
        return (
            torch.einsum(
                "or,ri,os,si->oi", w["hada_w1_a"], w["hada_w1_b"], w["hada_w2_a"], w["hada_w2_b"]
            )
            * alpha
            / len(w["hada_w1_b"])
        ).reshape(size)
    scale = next((alpha / len(w[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in w), 1.0)
    first = w["lokr_w1"] if "lokr_w1" in w else w["lokr_w1_a"] @ w["lokr_w1_b"]
    if "lokr_t2" in w:
        second = torch.einsum("abkl,ao,bi->oikl", w["lokr_t2"], w["lokr_w2_a"], w["lokr_w2_b"])
    else:
        second = w["lokr_w2"] if "lokr_w2" in w else w["lokr_w2_a"] @ w["lokr_w2_b"]
    second = second.reshape(out // len(first), inputs // first.shape[1])
    return (scale * torch.einsum("ac,bd->abcd", first, second)).reshape(size)


def decomposed(merged, dora_scale):
    """Give each column of a weight the norm that the file says, as the WebUI's
    apply_weight_decompose does.
    """
    norms = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
    return merged * (
        dora_scale / norms.reshape(merged.shape[1], *[1] * (merged.dim() - 1)).transpose(0, 1)
    )


def merged_into(parts, adapters):
    """Add to the model's own weights what the file says, the projections of an attention each in
    its third.
    """
    for path, weights in adapters.weights().items():
        above, _, name = path.rpartition(".")
        module = parts.get_submodule(above)
        if isinstance(module, torch.nn.MultiheadAttention) and name != "out_proj":
            weight = module.in_proj_weight.data.chunk(3)["qkv".index(name[0])]
        else:
            weight = parts.get_submodule(path).weight.data
        change = change_in_file(weights, adapters.alphas[path], weight.shape)
        if "dora_scale" in weights:
            change = (
                decomposed(weight.double() + change, weights["dora_scale"].double())
                - weight.double()
            )
        weight += change.to(weight.dtype)


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


def test_a_forward_that_others_gave_an_attention_comes_back(parts):
    attention, before = parts.get_submodule(ATTENTION), outputs(parts)
    attention.forward = others = functools.partial(torch.nn.MultiheadAttention.forward, attention)
    adapters = scramble(Adapters.create(parts, everything(parts)))
    for _ in range(2):
        with adapters.attached():
            assert attention.forward is not others and not torch.allclose(
                outputs(parts)[2], before[2]
            )
        assert vars(attention)["forward"] is others and torch.equal(outputs(parts)[2], before[2])
    adapters.detach()  # once more than attached
    assert vars(attention)["forward"] is others


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


def test_no_layers_and_half_an_attention_are_said(parts):
    with pytest.raises(ValueError, match="no layer that could learn"):
        Adapters.create(parts, {})
    with pytest.raises(
        ValueError, match=r"all four projections or in none; k_proj, out_proj is missing"
    ):
        Adapters.create(
            parts, {f"{ATTENTION}.{name}": RankAlpha(1, 1) for name in ("q_proj", "v_proj")}
        )


# --- Attention that has its projections in one weight ---------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(need_weights=False),
        dict(average_attn_weights=False),
        dict(need_weights=False, attn_mask=torch.triu(torch.full((5, 5), float("-inf")), 1)),
        dict(key_padding_mask=torch.tensor([[False] * 5, [False, False, False, True, True]])),
    ],
    ids=lambda value: "+".join(value),
)
@torch.no_grad()  # with gradients torch folds products of turned tensors in another order
def test_attention_takes_the_arguments_of_torch(batch_first, arguments):
    """Neutral it says what torch says, for self-attention and for other keys; with weights, what
    torch says of changed weights.
    """
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict(
        {"te1": OpenClipText(batch_first=batch_first).train()}
    ).requires_grad_(False)  # train: torch's own fast path stays out
    attention = parts.get_submodule("te1.transformer.resblocks.0.attn")
    x, other = (torch.randn((2, 5, 12) if batch_first else (5, 2, 12)) for _ in range(2))
    adapters = Adapters.create(parts, everything_of_text(parts))
    before = [
        attention(x, x, x, **arguments),
        attention(x, other, other, **arguments),
        attention(x[0], x[0], x[0], need_weights=False),
    ]
    with adapters.attached():
        after = [
            attention(x, x, x, **arguments),
            attention(x, other, other, **arguments),
            attention(x[0], x[0], x[0], need_weights=False),
        ]
        scramble(adapters)
        adapted = [attention(x, x, x, **arguments), attention(x, other, other, **arguments)]
    assert all(
        one is two is None or torch.equal(one, two)
        for pair in zip(before, after)
        for one, two in zip(*pair)
    )
    merged_into(parts, adapters)
    merged = [attention(x, x, x, **arguments), attention(x, other, other, **arguments)]
    assert all(
        one is two is None or torch.allclose(one, two, atol=1e-5)
        for pair in zip(adapted, merged)
        for one, two in zip(*pair)
    )


def everything_of_text(parts):
    return assign_ranks(parts, LayerSettings("all", 2, 3.0, text_encoder=True))


def test_the_class_of_attention_may_be_patched(parts, monkeypatch):
    """The WebUI replaces `MultiheadAttention.forward` in the class; ours is asked while attached,
    theirs otherwise.
    """
    asked, original = [], torch.nn.MultiheadAttention.forward
    monkeypatch.setattr(
        torch.nn.MultiheadAttention,
        "forward",
        lambda self, *args, **kwargs: asked.append(1) or original(self, *args, **kwargs),
    )
    adapters = Adapters.create(parts, everything(parts))
    with adapters.attached():
        outputs(parts)
        assert not asked
    outputs(parts)
    assert len(asked) == 2


# --- Dropouts -------------------------------------------------------------------------------------


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
def test_dropouts_of_an_attention_keep_the_mean(parts, kind):
    """Averaged over many draws, the changed weights are those without dropout."""
    adapters = scramble(
        Adapters.create(
            parts,
            everything(parts),
            AdapterSpec(kind, dropout=0.2 if kind == "lora" else 0.0, rank_dropout=0.3),
        )
    )
    layer = adapters._layers[f"{ATTENTION}.k_proj"]
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([layer.delta_weight(dropouts=adapters._dropouts) for _ in range(1000)])
        whole = layer.delta_weight()
    assert (drawn.mean(0) - whole).abs().max() < 0.1 * whole.abs().max() and drawn.std(
        0
    ).max() > 0.1 * whole.abs().max()


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


def changes(parts, adapters):
    own = {path: adapters._layers[path].base_layer.weight.shape for path in adapters.rank_alphas}
    return {
        path: change_in_file(weights, adapters.alphas[path], own[path])
        for path, weights in adapters.weights().items()
    }


def test_forms_are_plain_values():
    """A state on disk keeps them as a mapping."""
    assert AdapterSpec(**dataclasses.asdict(FORMS[-1])) == FORMS[-1]
