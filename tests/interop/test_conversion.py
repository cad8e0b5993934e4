"""Arguments and values as other programs write them."""

import math

import pytest

from lora_trainer.interop.conversion import (
    is_unset,
    parse_arguments,
    parse_text,
)
from tests.support.kohya_settings import settings


@pytest.mark.parametrize(
    "odd",
    [
        "-" * 900 + "1",
        "-" * 100_000 + "1",
        "(" * 900,
        "{[]: 1}",
        "{{}}",
        "9" * 5000,
        "[" * 900 + "]" * 900,
        "'" * 5000,
    ],
)
def test_nonsense_in_arguments_is_taken_as_words_or_left_out(odd):
    for given in (
        [f"eps={odd}", "betas=(0.9, 0.99)"],
        {"eps": odd, "betas": "(0.9, 0.99)"},
        f'["eps={odd}", "betas=(0.9, 0.99)"]',
    ):
        found = settings({"optimizer_type": "AdamW", "optimizer_args": given})
        assert found["optimizer"] == "adamw" and found.get(
            "optimizer_args", "betas=0.9,0.99"
        ).endswith("betas=0.9,0.99")
    for name in ("optimizer_args", "network_args"):
        assert (
            settings({"network_dim": 8, name: odd})["lora_rank"] == 8
            and settings({"network_dim": 8, name: "[" * 100_000})["lora_rank"] == 8
        )


def test_arguments_and_emptiness():
    assert parse_arguments(["a=1", "b = x=y", "c", ""]) == {"a": "1", "b": "x=y", "c": True}
    assert parse_arguments('{"conv_dim": "8", "dropout": null}') == {
        "conv_dim": "8",
        "dropout": None,
    }
    assert (
        parse_arguments('a="1 2" b=None') == {"a": "1 2", "b": None}
        and parse_arguments(None) == {}
        and parse_arguments(3) == {}
    )
    assert [parse_text(text) for text in ("", " None ", "true", "False", " x ")] == [
        None,
        None,
        True,
        False,
        "x",
    ]
    assert all(map(is_unset, (None, False, "", 0, 0.0, "0", [], {}))) and not any(
        map(is_unset, (True, 1, "x", [0], math.nan))
    )
