"""Attention that has its projections in one weight."""

import functools

import pytest
import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, RankAlpha
from lora_trainer.lora.adapters import Adapters
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
from tests.support.adapted_models import ATTENTION, everything, merged_into, outputs, scramble
from tests.support.open_clip_text import OpenClipText


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


def test_no_layers_and_half_an_attention_are_said(parts):
    with pytest.raises(ValueError, match="no layer that could learn"):
        Adapters.create(parts, {})
    with pytest.raises(
        ValueError, match=r"all four projections or in none; k_proj, out_proj is missing"
    ):
        Adapters.create(
            parts, {f"{ATTENTION}.{name}": RankAlpha(1, 1) for name in ("q_proj", "v_proj")}
        )


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
