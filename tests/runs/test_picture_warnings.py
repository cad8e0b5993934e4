"""What is said of pictures and captions before a run."""

import pytest
from PIL import Image

from tests.support.plans import captions, planned


def test_nothing_is_enlarged_so_nothing_is_said_of_it(host, settings):
    assert not any(
        "enlarged" in warning
        for warning in planned(settings, host, resolution=128, bucket_no_upscale=True).warnings
    )


def test_long_captions_by_the_longest_that_is_read(host, settings, pictures):
    (pictures / "0.txt").write_text(" ".join(["word"] * 100))
    assert not any(
        "words" in warning for warning in planned(settings, host).warnings
    )  # 225 tokens, about 165 words
    assert (
        "The caption of 0.png has 100 words; only the first 75 tokens, about 55 words, count."
        in planned(settings, host, max_token_length=75).warnings
    )


def test_transparency_that_is_a_mask_is_not_told_as_white(host, settings, pictures):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(pictures / "0.png")
    assert "0.png: transparent parts become white." in planned(settings, host).warnings
    found = planned(settings, host, masked_loss="alpha").warnings
    assert (
        not any("white" in warning for warning in found)
        and "5 of 6 pictures (1.png, …) are transparent nowhere: all of them is learned." in found
    )


def test_regularisation_without_captions_or_weight(host, settings, others):
    (others / "1_any_circle").rename(others / "any")
    found = planned(settings, host, reg_data_dir=str(others / "any"), prior_loss_weight=0).warnings
    assert any(
        "1 of 2 regularisation pictures have no caption" in warning for warning in found
    ) and any("weight is 0" in warning for warning in found)


@pytest.mark.parametrize(
    "use, shown, sentence",
    [
        ("join", "zib, a circle {red|blue} shape", "2.png has several lines: they are joined"),
        ("first", "zib, a circle", "2.png has several lines: only the first counts."),
        (
            "alternatives",
            "zib, a circle\nzib, {red|blue} shape",
            "2.png has several lines: one is drawn each time.",
        ),
    ],
)
def test_lines_are_used_as_set_and_said(host, settings, lines, use, shown, sentence):
    plan = planned(settings, host, trigger_word="zib", caption_lines=use)
    assert captions(plan)[2] == shown and [
        warning for warning in plan.warnings if warning.startswith(sentence)
    ]


def test_choices_are_drawn_where_asked_for_and_said(host, settings, lines):
    assert any(
        "2.png has {this|that}: read as it is written" in warning
        for warning in planned(settings, host).warnings
    )
    plan = planned(settings, host, caption_wildcards=True, trigger_word="red")
    assert "2.png has {this|that}: one of them is drawn each time." in plan.warnings
    assert (
        captions(plan)[2] == "red, a circle {red|blue} shape"
    )  # what may be drawn is not sure to be there


def test_two_captions_that_differ_are_named_and_one_counts(host, settings, lines):
    plan = planned(settings, host)
    assert (
        "3.png has a .txt and a .caption that differ: the .txt counts." in plan.warnings
        and captions(plan)[3] == "a circle, number 3"
    )
    plan = planned(settings, host, caption_extension=".caption")
    assert (
        "3.png has a .txt and a .caption that differ: the .caption counts." in plan.warnings
        and captions(plan)[3] == "kohya's"
    )
    (lines / "4.caption").write_text("kohya's", encoding="utf-8")
    assert any(
        "2 pictures (3.png, …) have a .txt and a .caption" in warning
        for warning in planned(settings, host).warnings
    )


def test_a_lora_where_none_is_called_is_said(host, settings, pictures):
    (pictures / "1.txt").write_text("a circle, lora:zib:0.9", encoding="utf-8")
    warnings = planned(settings, host, trigger_word="lora:zib:1").warnings
    assert any("1.png has a LoRA's tag in the caption" in warning for warning in warnings)
    assert any("The trigger word holds lora:zib:1" in warning for warning in warnings)
