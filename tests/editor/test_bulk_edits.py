"""Bulk edits of captions, each by what it makes of a few."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.editor.bulk_edits import plan_edit

CAPTIONS = {"a": "cat, Red, red,  x", "b": "a photo of zib on grass", "c": "", "d": "red, zib, cat"}


@pytest.mark.parametrize(
    "action, settings, expected",
    [
        (
            "trigger_first",
            {"text": "zib"},
            {
                "a": "zib, cat, Red, red, x",
                "b": "zib, a photo of zib on grass",
                "c": "zib",
                "d": "zib, red, cat",
            },
        ),
        (
            "prepend",
            {"text": "best"},
            {
                "a": "best, cat, Red, red, x",
                "b": "best, a photo of zib on grass",
                "c": "best",
                "d": "best, red, zib, cat",
            },
        ),
        (
            "prepend",
            {"text": "drawing of "},
            {
                "a": "drawing of cat, Red, red, x",
                "b": "drawing of a photo of zib on grass",
                "c": "drawing of",
                "d": "drawing of red, zib, cat",
            },
        ),
        (
            "append",
            {"text": "x"},
            {
                "a": "cat, Red, red, x, x",
                "b": "a photo of zib on grass, x",
                "c": "x",
                "d": "red, zib, cat, x",
            },
        ),
        (
            "append",
            {"text": " at night"},
            {
                "a": "cat, Red, red, x at night",
                "b": "a photo of zib on grass at night",
                "c": "at night",
                "d": "red, zib, cat at night",
            },
        ),
        (
            "replace",
            {"find": "RED", "replace": "blue"},
            {"a": "cat, blue, blue, x", "d": "blue, zib, cat"},
        ),
        (
            "replace",
            {"find": "red", "replace": "blue", "match_case": True},
            {"a": "cat, Red, blue, x", "d": "blue, zib, cat"},
        ),
        ("replace", {"find": "red", "replace": ""}, {"a": "cat, x", "d": "zib, cat"}),
        (
            "replace",
            {"find": r"\b(c)at", "replace": r"\1ow", "regex": True},
            {"a": "cow, Red, red, x", "d": "red, zib, cow"},
        ),
        (
            "replace",
            {"find": "a", "replace": r"\1"},
            {"a": r"c\1t, Red, red, x", "b": r"\1 photo of zib on gr\1ss", "d": r"red, zib, c\1t"},
        ),
        ("replace", {"find": "(", "replace": ""}, {}),
        ("remove_tag", {"tag": "RED"}, {"a": "cat, x", "d": "zib, cat"}),
        ("rename_tag", {"tag": "red", "to": "cat"}, {"a": "cat, x", "d": "cat, zib"}),
        ("rename_tag", {"tag": "zib", "to": "Zib"}, {"d": "red, Zib, cat"}),
        ("deduplicate", {}, {"a": "cat, Red, x"}),
        ("sort", {}, {"d": "cat, red, zib"}),
        ("order", {"keep": "zib"}, {"a": "Red, red, cat, x", "d": "zib, red, cat"}),
    ],
)
def test_actions(action, settings, expected):
    captions = {**CAPTIONS, "a": "cat, Red, red,  x"}
    if action == "trigger_first":
        assert "a zibra" not in plan_edit(action, {"e": "zib, x"}, settings).values()
    assert plan_edit(action, captions, settings) == expected


def test_duplicates_keep_the_order_of_the_first():
    assert plan_edit("deduplicate", {"a": "a, b, A, c, b"}, {}) == {"a": "a, b, c"}


def test_order_goes_by_the_whole_data_set():
    everything = {"a": "x, y", "b": "y", "c": "y, z"}
    assert plan_edit("order", {"a": "x, y"}, {}, everything=everything) == {"a": "y, x"}


def test_the_trigger_word_is_not_found_inside_another_word():
    assert plan_edit("trigger_first", {"a": "zibra, x"}, {"text": "zib"}) == {"a": "zib, zibra, x"}


@pytest.mark.parametrize(
    "action, settings, field, sentence",
    [
        ("fly", {}, "action", "expected one of trigger_first"),
        ("replace", {"find": ""}, "find", "empty"),
        ("replace", {"find": "(", "regex": True}, "find", "cannot be read"),
        ("replace", {"find": "cat", "replace": r"\2", "regex": True}, "replace", "invalid group"),
        ("prepend", {"text": " , "}, "text", "empty"),
        ("prepend", {}, "text", "empty"),
        ("prepend", {"text": 3}, "text", "must be text"),
        ("remove_tag", {"tag": ""}, "tag", "empty"),
        ("rename_tag", {"tag": "a"}, "to", "empty"),
        ("replace", {"find": "a", "replace": "b", "regex": "yes"}, "regex", "true or false"),
        ("append", {"text": "x" * 6000}, "text", "at most 5000"),
    ],
)
def test_what_cannot_be_done_says_why(action, settings, field, sentence):
    with pytest.raises(Refused, match=sentence) as caught:
        plan_edit(action, CAPTIONS, settings)
    assert caught.value.field == field


def test_a_pattern_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr("lora_trainer.editor.bulk_edits.PATTERN_SECONDS", 0.2)
    with pytest.raises(Refused, match="takes too long"):
        plan_edit(
            "replace",
            {"a": "a" * 200},
            {"find": r"(?:(a+)\1?)+(?<!a)x|(a|aa)+$y", "replace": "", "regex": True},
        )


def test_a_caption_that_would_explode_is_refused_at_once():
    with pytest.raises(Refused, match="longer than 100,000"):
        plan_edit("replace", {"a": "a" * 90_000}, {"find": "a", "replace": "b" * 5000})
