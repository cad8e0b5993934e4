"""Arguments of an optimizer, written as text."""

import math

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.training.optimizer_arguments import read_arguments
from lora_trainer.training.optimizer_kinds import KINDS
from lora_trainer.training.optimizers import check_with_step
from tests.support.optimizers import CPU, make, needs


def test_arguments_reach_the_optimizer_and_win():
    group = make(
        arguments="betas=0.9,0.99 eps=1e-6, amsgrad=true weight_decay=0.5", weight_decay=0.1
    ).param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"], group["weight_decay"]) == (
        (0.9, 0.99),
        1e-6,
        True,
        0.5,
    )
    assert make(arguments=" betas = [0.8, 0.95] ").param_groups[0]["betas"] == (0.8, 0.95)
    assert make(arguments="foreach=True").param_groups[0]["foreach"] is True


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("d_coef=2", "AdamW takes no 'd_coef'. It takes: amsgrad, betas, eps, "),
        ("lr=1", "AdamW takes no 'lr'. The learning rate has a field of its own"),
        ("capturable=True", "takes no 'capturable'"),
        (
            "betas=0.9",
            (
                "betas=0.9 does not fit. Expected 2 numbers with commas between, such as"
                " betas=0.9,0.999"
            ),
        ),
        ("betas=0.9,high", "betas=0.9,high does not fit"),
        ("amsgrad=1", "amsgrad=1 does not fit. Expected True or False"),
        ("eps=tiny", "eps=tiny does not fit. Expected a number"),
        ("eps=nan", "eps=nan does not fit"),
        ("eps=__import__('os')", "does not fit"),
        ("eps=" + "(" * 500, "does not fit"),
        ("weight_decay=-1", "weight_decay=-1 does not fit"),
        ("betas", "is not of the form name=value"),
        ("fast betas=0.9,0.99", "is not of the form name=value"),
        (
            "betas=0.9,1.5",
            "with 'betas=0.9,1.5' a step of AdamW fails .ValueError: Invalid beta parameter",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused_with_what_can(arguments, sentence):
    with pytest.raises(
        Refused, match=sentence.replace("(", r"\(") if "(" in sentence else sentence
    ) as caught:
        check_with_step("adamw", arguments, CPU)
    assert caught.value.field == "optimizer_args"


def test_arguments_of_other_kinds():
    needs("prodigy")
    group = make(
        "prodigy",
        arguments="d_coef=2 decouple=False use_bias_correction=True beta3=None growth_rate=inf",
    ).param_groups[0]
    assert (
        group["d_coef"],
        group["decouple"],
        group["use_bias_correction"],
        group["beta3"],
        group["growth_rate"],
    ) == (2, False, True, None, math.inf)
    with pytest.raises(Refused, match="with 'slice_p=2.5' a step of Prodigy fails"):
        check_with_step("prodigy", "slice_p=2.5", CPU)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        (" \n", {}),
        ("betas=0.9,0.99 eps=1e-6", {"betas": (0.9, 0.99), "eps": 1e-6}),
        ("betas=[0.9, 0.99]; amsgrad=TRUE", {"betas": (0.9, 0.99), "amsgrad": True}),
        ("foreach = none, fused=False", {"foreach": None, "fused": False}),
        ("weight_decay=0\teps=inf", {"weight_decay": 0, "eps": math.inf}),
    ],
)
def test_names_and_values_are_read_from_text(text, expected):
    assert read_arguments(KINDS["adamw"], text) == expected


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("0.9", "'0.9' is not of the form name=value"),
        ("x betas=0.9,0.99", "is not of the form"),
        ("weight_decay=-1", "weight_decay=-1 does not fit. Expected a number"),
        ("eps=nan", "eps=nan does not fit"),
        ("eps=True", "eps=True does not fit"),
        ("amsgrad=1", "amsgrad=1 does not fit. Expected True or False, such as amsgrad=False"),
        ("betas=0.9", "Expected 2 numbers with commas between, such as betas=0.9,0.999"),
        ("foreach=maybe", "Expected a number, True, False or None"),
        ("params=1", "takes no 'params'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(text, sentence):
    with pytest.raises(Refused) as caught:
        read_arguments(KINDS["adamw"], text)
    assert sentence in caught.value.message and caught.value.field == "optimizer_args"
