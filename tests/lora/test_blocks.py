"""Blocks by the WebUI's names, whatever a host calls its layers, and lists of them as people write
them.
"""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.lora.blocks import (
    PRESETS,
    BlockRank,
    block_names,
    block_of,
    levels_of,
    read_blocks,
)
from lora_trainer.lora.weight_names import unet_to_diffusers


@pytest.mark.parametrize(
    "path, block",
    [
        ("input_blocks.0.0", "IN00"),
        ("conv_in", "IN00"),
        ("input_blocks.4.1.proj_in", "IN04"),
        ("down_blocks.1.attentions.0.proj_in", "IN04"),
        ("input_blocks.3.0.op", "IN03"),
        ("down_blocks.0.downsamplers.0.conv", "IN03"),
        ("middle_block.1.proj_in", "MID"),
        ("mid_block.resnets.1.conv1", "MID"),
        ("output_blocks.11.0.in_layers.2", "OUT11"),
        ("up_blocks.3.resnets.2.conv1", "OUT11"),
        ("up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("output_blocks.2.1.conv", "OUT02"),
        ("time_embed.0", None),
        ("time_embedding.linear_1", None),
        ("out.2", None),
        ("conv_out", None),
        ("label_emb.0.0", None),
    ],
)
def test_block_of(path, block):
    assert block_of(path) == block


@pytest.mark.parametrize("levels", [4, 3])
def test_ldm_and_diffusers_names_are_of_the_same_block(levels):
    """Whatever the table of names says is the same layer, is in the same block; every block is
    there.
    """
    seen = set()
    for side, first in (("input", 1), ("output", 0)):
        for number in range(first, 3 * levels):
            for inside in (
                "0.in_layers.2",
                "1.transformer_blocks.0.attn1.to_q",
                "0.op",
                "1.conv",
                "2.conv",
            ):
                path = f"{side}_blocks.{number}.{inside}"
                try:
                    theirs = unet_to_diffusers(path, levels)
                except KeyError:
                    continue
                assert block_of(theirs) == block_of(path) == f"{side[:-3].upper()}{number:02d}", (
                    path,
                    theirs,
                )
                seen.add(block_of(path))
    assert seen >= set(block_names(levels)) - {"MID", "IN00"}


def test_levels():
    assert (
        levels_of(["input_blocks.8.1.proj_in", "output_blocks.8.0.in_layers.2", "time_embed.0"])
        == 3
        == levels_of(["up_blocks.2.resnets.2.conv1"])
    )
    assert (
        levels_of(["output_blocks.11.0.in_layers.2"])
        == 4
        == levels_of(["up_blocks.3.resnets.0.conv1"])
        == levels_of([])
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("MID", {"MID": (None, None)}),
        ("mid=64:32", {"MID": (64, 32.0)}),
        ("in4 = 8 : 0.5, OUT3", {"IN04": (8, 0.5), "OUT03": (None, None)}),
        ("IN04-IN06=16", {"IN04": (16, None), "IN05": (16, None), "IN06": (16, None)}),
        ("IN04 - 05; BASE=2", {"IN04": (None, None), "IN05": (None, None), "BASE": (2, None)}),
        ("IN11–OUT00=4\nMID=0", {"IN11": (4, None), "MID": (0, None), "OUT00": (4, None)}),
        ("mid=4,MID=8", {"MID": (8, None)}),
        (
            "composition",
            dict.fromkeys(
                ["IN07", "IN08", "IN09", "IN10", "IN11", "MID"] + [f"OUT0{n}" for n in range(6)],
                (None, None),
            ),
        ),
    ],
)
def test_lists(text, expected):
    assert read_blocks(text, 4) == {name: BlockRank(*shape) for name, shape in expected.items()}


def test_presets_may_be_changed_in_part():
    found = read_blocks("all=8, mid=16:4", 3)
    assert (
        list(found) == block_names(3)
        and found["MID"] == BlockRank(16, 4.0)
        and found["OUT08"] == BlockRank(8)
    )


@pytest.mark.parametrize("levels", [3, 4])
def test_presets_are_parts_of_the_unet(levels):
    for name in PRESETS[levels]:
        assert 0 < len(read_blocks(name, levels)) <= len(block_names(levels)) == 6 * levels + 1
    assert (
        list(PRESETS[3])
        == list(PRESETS[4])
        == ["all", "down", "mid", "up", "character", "style", "composition"]
    )


@pytest.mark.parametrize(
    "text, levels, said",
    [
        ("OUT09", 3, r"no block 'OUT09'.*IN00 to IN08, MID, OUT00 to OUT08"),
        ("MIDD", 4, "Did you mean MID"),
        ("stile", 4, "Did you mean style"),
        ("IN08-IN04", 4, "IN04 does not come after IN08"),
        ("BASE-IN04", 4, "is no range"),
        ("IN04=x", 4, "'IN04=x' is not understood"),
        ("IN04=4:0", 4, "alpha above 0"),
        ("IN04=4:", 4, "not understood"),
        ("IN04=2000", 4, "to 1024"),
        ("IN04==4", 4, "not understood"),
        ("IN99999999999", 4, "no block"),
        ("-", 4, "no block"),
    ],
)
def test_bad_lists_are_refused(text, levels, said):
    with pytest.raises(Refused, match=said) as refusal:
        read_blocks(text, levels)
    assert refusal.value.field == "lora_blocks"
