"""Captions that are other each time: shares, what is kept, and where the trigger word goes."""

from collections import Counter

import pytest

from lora_trainer.base.rng import generator
from lora_trainer.dataset.caption_augmentation import (
    CaptionAugmentation,
    filled,
    has_choices,
    without_choices,
)

CAPTION = "mycat, black fur, sitting, indoors, window"
TIMES = 4000


def drawn(variation, caption=CAPTION, times=TIMES, **kwargs):
    draws = generator(7, "captions")
    return [variation.draw(caption, draws, **kwargs) for _ in range(times)]


def parts_of(caption):
    return caption.split(", ") if caption else []


def test_without_any_the_caption_is_as_it_is():
    odd = "a,b ,  c"
    assert not CaptionAugmentation(keep_tokens=2, trigger_word="a").varies and set(
        drawn(CaptionAugmentation(), odd, 5)
    ) == {odd}
    assert all(
        CaptionAugmentation(**{name: value}).varies
        for name, value in (
            ("shuffle", True),
            ("caption_dropout", 0.1),
            ("tag_dropout", 0.1),
            ("trigger_only", 0.1),
        )
    )


def test_shuffling_gives_every_order_alike_and_keeps_the_front():
    found = Counter(drawn(CaptionAugmentation(shuffle=True, keep_tokens=2), "a, b, c, d, e"))
    assert set(found) == {
        f"a, b, {order}"
        for order in ("c, d, e", "c, e, d", "d, c, e", "d, e, c", "e, c, d", "e, d, c")
    }
    assert all(abs(count - TIMES / 6) < 4 * (TIMES * 5 / 36) ** 0.5 for count in found.values())


def test_the_separator_goes_before_the_count_and_is_not_shown():
    variation = CaptionAugmentation(shuffle=True, keep_tokens=1, keep_tokens_separator="|||")
    assert {caption[:6] for caption in drawn(variation, "a, b ||| c, d, e", 200)} == {
        "a, b, "
    } and "|" not in "".join(drawn(variation, "a, b ||| c, d", 20))
    assert {parts_of(caption)[0] for caption in drawn(variation, "a, b, c", 200)} == {
        "a"
    }  # a caption without it: the count
    assert (
        variation.plain("a, b ||| c, d ||| e") == "a, b, c, d, e"
        and variation.plain("a,b") == "a,b"
    )
    assert set(
        drawn(CaptionAugmentation(caption_dropout=0.01, keep_tokens_separator="|||"), "a ||| b", 20)
    ) <= {"a, b", ""}


def test_what_follows_a_second_separator_stays_at_the_end():
    """As kohya's fixed_suffix_tokens: neither shuffled nor left out."""
    found = Counter(
        drawn(
            CaptionAugmentation(shuffle=True, keep_tokens_separator="|||"),
            "a ||| b, c, d ||| y, z",
            500,
        )
    )
    assert set(found) == {
        f"a, {order}, y, z"
        for order in ("b, c, d", "b, d, c", "c, b, d", "c, d, b", "d, b, c", "d, c, b")
    }
    assert set(
        drawn(
            CaptionAugmentation(tag_dropout=1.0, keep_tokens_separator="|||"),
            "a ||| b, c ||| y ||| z",
            20,
        )
    ) == {"a, y, z"}


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_tags_are_left_out_at_their_rate_and_stay_in_order(rate):
    found = [
        parts_of(caption)
        for caption in drawn(CaptionAugmentation(tag_dropout=rate, keep_tokens=1), "a, b, c, d, e")
    ]
    counts = Counter(part for parts in found for part in parts)
    assert (
        counts["a"] == TIMES
        and all(abs(counts[part] / TIMES - (1 - rate)) < 0.04 for part in "bcde")
        and all(parts == sorted(parts) for parts in found)
    )
    pairs = sum("b" in parts and "c" in parts for parts in found) / TIMES
    assert abs(pairs - (1 - rate) ** 2) < 0.04  # each by itself


def test_shares_of_no_caption_and_the_trigger_word_alone_are_of_all_times():
    found = Counter(
        drawn(CaptionAugmentation(caption_dropout=0.3, trigger_only=0.2, trigger_word="mycat"))
    )
    assert (
        abs(found[""] / TIMES - 0.3) < 0.03
        and abs(found["mycat"] / TIMES - 0.2) < 0.03
        and found[CAPTION] == TIMES - found[""] - found["mycat"]
    )
    assert set(drawn(CaptionAugmentation(caption_dropout=1.0), times=50)) == {""} and set(
        drawn(CaptionAugmentation(trigger_only=1.0, trigger_word="mycat"), times=50)
    ) == {"mycat"}


def test_the_trigger_word_in_front_stays_there():
    found = drawn(
        CaptionAugmentation(shuffle=True, tag_dropout=0.5, trigger_word="mycat"), times=300
    )
    assert {parts_of(caption)[0] for caption in found} == {"mycat"} and len(set(found)) > 50
    of_two = drawn(
        CaptionAugmentation(shuffle=True, tag_dropout=0.9, trigger_word="zib, my cat"),
        "zib, my cat, a, b",
        100,
    )
    assert all(caption.startswith("zib, my cat") for caption in of_two)
    counted = drawn(
        CaptionAugmentation(tag_dropout=1.0, keep_tokens=2, trigger_word="mycat"), times=1
    )
    assert counted == ["mycat, black fur"]  # it is among the kept ones, not one more


def test_the_trigger_word_elsewhere_moves_and_is_never_left_out():
    found = drawn(
        CaptionAugmentation(shuffle=True, tag_dropout=0.8, trigger_word="zib"),
        "a dog, photo of zib, red, zibra",
        300,
    )
    assert all("photo of zib" in parts_of(caption) for caption in found) and {
        parts_of(caption)[0] for caption in found
    } > {"photo of zib"}
    assert any("zibra" not in caption for caption in found)
    assert (
        "mycatnip"
        not in drawn(
            CaptionAugmentation(tag_dropout=1.0, trigger_word="mycat"), "mycatnip, mycat", 1
        )[0]
    )


def test_regularisation_knows_no_trigger_word():
    variation = CaptionAugmentation(
        tag_dropout=1.0, trigger_only=1.0, trigger_word="cat", keep_tokens=1
    )
    assert set(drawn(variation, "a, photo of cat, b", 20, regularisation=True)) == {"a"}


def test_draws_come_from_the_generator_alone():
    variation = CaptionAugmentation(True, 1, "", 0.1, 0.2, 0.1, "mycat")
    assert drawn(variation, times=50) == drawn(variation, times=50)
    assert [
        variation.draw("", generator(1, "x")),
        CaptionAugmentation(True, 3, "|", 0, 0.5).draw(",", generator(1, "x")),
    ] == ["", ""]


# --- Lines and {this|that} ------------------------------------------------------------------------


def test_one_line_is_drawn_each_time_all_alike():
    found = Counter(drawn(CaptionAugmentation(alternatives=True), "a cat\nmycat, red\nred"))
    assert set(found) == {"a cat", "mycat, red", "red"} and all(
        abs(count / TIMES - 1 / 3) < 0.04 for count in found.values()
    )
    assert (
        CaptionAugmentation(alternatives=True).varies
        and CaptionAugmentation(alternatives=True).plain("a cat\nred") == "a cat"
    )


def test_what_is_drawn_is_the_generators():
    """As in a run that is resumed: each step has a generator of its own."""
    variation, caption = (
        CaptionAugmentation(alternatives=True, wildcards=True),
        "a {red|blue|green} cat\n{small|large}, dog",
    )
    assert [variation.draw(caption, generator(7, "captions", at)) for at in range(20)] == [
        variation.draw(caption, generator(7, "captions", at)) for at in range(20)
    ]


def test_a_caption_of_one_line_takes_no_draw():
    assert drawn(
        CaptionAugmentation(alternatives=True, wildcards=True, shuffle=True), times=20
    ) == drawn(CaptionAugmentation(shuffle=True), times=20)


def test_a_line_is_drawn_before_its_tags_are_shuffled():
    found = set(
        drawn(
            CaptionAugmentation(alternatives=True, shuffle=True, keep_tokens=1),
            "a, b, c\nx, y, z",
            300,
        )
    )
    assert found == {"a, b, c", "a, c, b", "x, y, z", "x, z, y"}


def test_one_of_each_choice_is_drawn():
    found = Counter(drawn(CaptionAugmentation(wildcards=True), "a {red|blue} {cat|dog}"))
    assert set(found) == {
        f"a {colour} {animal}" for colour in ("red", "blue") for animal in ("cat", "dog")
    }
    assert all(abs(count / TIMES - 1 / 4) < 0.04 for count in found.values())
    assert set(drawn(CaptionAugmentation(), "a {red|blue} cat", 20)) == {"a {red|blue} cat"}


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("{red|blue} cat", "blue cat"),
        ("{red} cat", "red cat"),
        ("{|very }red", "very red"),
        ("{} cat", "{} cat"),
        ("{{red|blue}} cat", "{red|blue} cat"),
        ("a {red|{dark|light} blue} cat", "a light blue cat"),
        ("{red|blue cat", "{red|blue cat"),
        ("a | b", "a | b"),
        ("{{{red|blue}", "{blue"),
        ("{a|b|c}", "c"),
        ("{" * 30 + "a", "{" * 15 + "a"),
    ],
)
def test_braces_are_read_as_sd_scripts_reads_them(caption, expected):
    assert filled(caption, lambda count: count - 1) == expected


def test_choices_are_seen_and_what_is_certain_too():
    assert has_choices("a {red|blue} cat") and not any(
        map(has_choices, ("a {red} cat", "{{red|blue}}", "a|b", ""))
    )
    assert without_choices("mycat, {red|{a|b} } {mycat|dog}").split() == ["mycat,"]


@pytest.mark.parametrize("caption", ["{{mycat}}, red", "{{mycat|dog}} {a|b}", "{red|{a|b}} x"])
def test_braces_that_stay_are_certain(caption):
    """As `filled` reads them: a trigger word in them is there already."""
    certain = without_choices(caption).split()
    for index in (0, 1):
        drawn = filled(caption, lambda count, index=index: min(index, count - 1)).split()
        assert set(certain) <= set(drawn)
    assert without_choices("{{mycat}}") == "{mycat}"
