"""The layers that learn are the ones that were asked for, with the rank and alpha of their group
and block.
"""

import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks, find_target_layers
from tests.support.open_clip_text import OpenClipText

BLOCK = "unet.input_blocks.1.1.transformer_blocks.0"
CONV, SHORTCUT = "unet.input_blocks.1.0.in_layers.2", "unet.input_blocks.1.0.emb_layers.1"


@pytest.fixture
def parts(host):
    return torch.nn.ModuleDict({**host.model.parts(), "te2": OpenClipText()})


def shapes(parts, targets="all", rank=4, alpha=2.0, **choice):
    return {
        path: (shape.rank, shape.alpha)
        for path, shape in assign_ranks(
            parts, LayerSettings(targets, rank, alpha, **choice)
        ).items()
    }


@pytest.mark.parametrize(
    "targets, unet, hf, open_clip",
    [("attention", 8, 4, 8), ("attention+feed-forward", 12, 6, 12), ("all", 14, 6, 12)],
)
def test_targets(parts, targets, unet, hf, open_clip):
    assert len(shapes(parts, targets)) == unet
    both = shapes(parts, targets, text_encoder=True)
    assert [sum(path.startswith(part) for path in both) for part in ("unet.", "te1.", "te2.")] == [
        unet,
        hf,
        open_clip,
    ]
    assert len(shapes(parts, targets, unet=False, text_encoder=True)) == hf + open_clip
    assert f"{BLOCK}.attn2.to_out.0" in both and (f"{BLOCK}.ff.net.0.proj" in both) == (
        targets != "attention"
    ) == ("te2.transformer.resblocks.1.mlp.c_fc" in both)
    assert not any(
        path.startswith(("unet.time_embed", "unet.out", "unet.input_blocks.0")) for path in both
    ) and set(both.values()) == {(4, 2.0)}


def test_a_block_whose_rate_is_0_is_left_out(parts):
    assert (
        shapes(parts, block_rates="IN00-IN01=0, OUT02=0.5", text_encoder=True).keys()
        == shapes(parts, unet=False, text_encoder=True).keys()
    )
    assert len(shapes(parts, block_rates="IN02=0")) == 14
    with pytest.raises(Refused, match="leaves nothing that learns") as refusal:
        shapes(parts, block_rates="IN00-OUT11=0")
    assert refusal.value.field == "block_learning_rates"


def test_all_four_projections_of_an_attention(parts):
    found = [
        path
        for path in shapes(parts, "attention", unet=False, text_encoder=True)
        if path.startswith("te2.transformer.resblocks.1")
    ]
    assert found == [
        f"te2.transformer.resblocks.1.attn.{name}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]


def test_vision_towers_are_no_text_encoders():
    tower = torch.nn.ModuleDict(
        {
            "te1": torch.nn.ModuleDict(
                {
                    "visual": OpenClipText(),
                    "vision_model": torch.nn.ModuleDict(
                        {
                            "layers": torch.nn.ModuleList(
                                [
                                    torch.nn.ModuleDict(
                                        {"mlp": torch.nn.ModuleDict({"fc1": torch.nn.Linear(2, 2)})}
                                    )
                                ]
                            )
                        }
                    ),
                }
            )
        }
    )
    with pytest.raises(Refused, match="no layer of the kinds"):
        shapes(tower, text_encoder=True)


def test_order_is_that_of_the_modules(parts):
    order = [path for path, _ in parts.named_modules()]
    found = [
        order.index(path if path in order and "resblocks" not in path else path.rpartition(".")[0])
        for path in shapes(parts, text_encoder=True)
    ]
    assert found == sorted(found)


def test_groups_have_their_own_ranks(parts):
    found = shapes(
        parts,
        attention_rank=8,
        attention_alpha=1.0,
        feed_forward_rank=16,
        conv_rank=3,
        conv_alpha=0.5,
        text_encoder_rank=5,
        text_encoder=True,
    )
    assert (
        found[f"{BLOCK}.attn1.to_q"] == (8, 1.0)
        and found[f"{BLOCK}.ff.net.2"] == (16, 8.0) == found["unet.input_blocks.1.1.proj_in"]
    )
    assert found[CONV] == (3, 0.5) and found[SHORTCUT] == (4, 2.0)
    assert {shape for path, shape in found.items() if path.startswith("te")} == {(5, 2.5)}


def test_a_rank_alone_leaves_the_strength_as_it_is(parts):
    """Scale is alpha / rank; it changes only where an alpha says so."""
    ranks = dict(attention_rank=8, feed_forward_rank=16, conv_rank=3, text_encoder_rank=5)
    found = shapes(parts, **ranks, blocks="IN01=6, BASE=7", text_encoder=True)
    assert {rank for rank, _ in found.values()} == {6, 3, 7} and {
        alpha / rank for rank, alpha in found.values()
    } == {0.5}
    assert set(
        shapes(
            parts, attention_rank=8, attention_alpha=4.0, blocks="IN01=6", targets="attention"
        ).values()
    ) == {(6, 3.0)}  # its group's strength
    assert set(
        shapes(parts, attention_alpha=4.0, blocks="IN01=6:1.5", targets="attention").values()
    ) == {(6, 1.5)}


def test_blocks(parts):
    """A block's own rank goes before its group's, but a convolution's own goes before its block's,
    as in kohya; rank 0 leaves all of it out.
    """
    assert (
        set(shapes(parts, blocks="IN01").values()) == {(4, 2.0)}
        and len(shapes(parts, blocks="IN01=6")) == 14
    )
    found = shapes(parts, blocks="down=6:3", attention_rank=8, attention_alpha=1.0, conv_rank=2)
    assert found[f"{BLOCK}.attn1.to_q"] == found[SHORTCUT] == (6, 3.0) and found[CONV] == (2, 1.0)
    assert shapes(parts, blocks="down=6:3")[CONV] == (6, 3.0) and shapes(
        parts, blocks="IN01=6", attention_alpha=1.0
    )[f"{BLOCK}.attn1.to_q"] == (6, 1.5)


def test_base_is_the_text_encoder(parts):
    """Named alone it says nothing of the UNet; blocks named without it say nothing of the text
    encoder.
    """
    alone = shapes(parts, blocks="BASE=2:1", text_encoder=True)
    assert {shape for path, shape in alone.items() if path.startswith("te")} == {
        (2, 1.0)
    } and alone[CONV] == (4, 2.0)
    assert not any(
        path.startswith("te") for path in shapes(parts, blocks="BASE=0", text_encoder=True)
    )
    assert len(shapes(parts, blocks="IN01", text_encoder=True)) == 14 + 6 + 12


@pytest.mark.parametrize("blocks", ["MID", "IN01=0", "all=0", "OUT03-OUT05"])
def test_blocks_without_any_layer_are_refused(parts, blocks):
    with pytest.raises(Refused, match="leave no layer to learn") as refusal:
        shapes(parts, blocks=blocks)
    assert refusal.value.field == "lora_blocks"


def test_nothing_to_train_is_always_refused():
    """Also without a list of blocks or their rates, which would be to blame."""
    parts = torch.nn.ModuleDict({"unet": torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3))})
    with pytest.raises(Refused, match="no layer of the kinds that are to learn"):
        assign_ranks(parts, LayerSettings(targets="attention", rank=4, alpha=4.0))


def test_an_unknown_kind_of_layers_is_not_taken_for_all():
    with pytest.raises(KeyError):
        list(find_target_layers(torch.nn.ModuleDict(), "everything"))
