"""Which weights learn at which rate."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.training.parameter_groups import (
    Group,
    RateChoice,
    groups_of,
    groups_without_model,
    own_settings,
    rates_of,
)

UP, DOWN, MAGNITUDES = "lora_up.weight", "lora_down.weight", "dora_scale"
WEIGHTS = {
    "unet.input_blocks.1.1.proj_in": {DOWN: 1, UP: 2, MAGNITUDES: 3},
    "unet.middle_block.1.proj_in": {DOWN: 4, UP: 5},
    "te1.text_model.encoder.layers.0.mlp.fc1": {DOWN: 6, UP: 7},
}


def test_without_anything_there_is_a_group_for_each_part_in_the_layers_order():
    found = groups_of(
        {path: dict(list(parts.items())[:2]) for path, parts in WEIGHTS.items()},
        RateChoice(1e-4, 5e-5),
        levels=4,
    )
    assert found == {Group("unet"): [1, 2, 4, 5], Group("text_encoder"): [6, 7]}
    assert (
        rates_of(found, RateChoice(1e-4, 5e-5)) == {"unet": 1e-4, "text_encoder": 5e-5}
        and own_settings(found) == {}
    )


def test_ratios_blocks_and_magnitudes_make_groups_of_their_own():
    choice = RateChoice(
        1e-4,
        5e-5,
        loraplus_lr_ratio=16,
        loraplus_text_encoder_lr_ratio=4,
        block_learning_rates="IN00-IN02=0.5, MID=2",
    )
    found = groups_of(WEIGHTS, choice, levels=4)
    assert found == {
        Group("unet", 0.5): [1],
        Group("unet", 8): [2],
        Group("unet", 0.5, decays=False): [3],
        Group("unet", 2): [4],
        Group("unet", 32): [5],
        Group("text_encoder"): [6],
        Group("text_encoder", 4): [7],
    }
    assert rates_of(found, choice) == pytest.approx(
        {
            "unet x0.5": 5e-5,
            "unet x8": 8e-4,
            "unet x0.5 magnitudes": 5e-5,
            "unet x2": 2e-4,
            "unet x32": 3.2e-3,
            "text_encoder": 5e-5,
            "text_encoder x4": 2e-4,
        }
    )
    assert own_settings(found)["unet x0.5 magnitudes"] == {
        "factor": 0.5,
        "weight_decay": 0.0,
    } and "text_encoder" not in own_settings(found)


def test_the_usual_group_comes_first():
    found = groups_of(
        {"unet.input_blocks.1.1.proj_in": {UP: 1, DOWN: 2}},
        RateChoice(1e-4, 5e-5, loraplus_lr_ratio=4),
        levels=4,
    )
    assert list(found.items()) == [(Group("unet"), [2]), (Group("unet", 4), [1])]


def test_what_does_not_learn_comes_last():
    """The first group shows the rate that is reported."""
    found = groups_of(WEIGHTS, RateChoice(1e-4, 5e-5, block_learning_rates="IN00-IN11=0"), levels=4)
    assert [group.name for group in found] == [
        "unet",
        "text_encoder",
        "unet x0",
        "unet x0 magnitudes",
    ]


def test_the_ratio_of_the_text_encoder_is_the_unets_where_none_is_given():
    assert RateChoice(1, 1, loraplus_lr_ratio=4).ratios() == {"unet": 4, "text_encoder": 4}


def test_groups_are_told_from_the_settings_alone():
    choice = RateChoice(1, 1, loraplus_lr_ratio=4, block_learning_rates="OUT11=0.5")
    assert groups_without_model(["unet"], choice, has_halves=True) == [
        Group("unet"),
        Group("unet", 4),
        Group("unet", 0.5),
        Group("unet", 2),
    ]
    assert groups_without_model(["text_encoder"], choice, has_halves=False) == [
        Group("text_encoder")
    ]


@pytest.mark.parametrize(
    "text, said",
    [
        ("MID", "'MID' is not understood"),
        ("MID=64:32", "not understood"),
        ("IN04=-1", "not understood"),
        ("IN04=101", "from 0"),
        ("IN44=1", "no block 'IN44'"),
        ("MID=nan", "not understood"),
        ("BASE=2", "set Learning rate, text encoder"),
        ("OUT03-IN02=1", "no range"),
    ],
)
def test_what_is_no_factor_of_a_block_is_refused(text, said):
    with pytest.raises(Refused, match=f"Learning rates of blocks: .*{said}") as refusal:
        groups_of(WEIGHTS, RateChoice(1, 1, block_learning_rates=text), levels=4)
    assert refusal.value.field == "block_learning_rates"
