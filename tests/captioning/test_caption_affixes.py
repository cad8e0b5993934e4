"""From words to captions."""

import pytest

from lora_trainer.captioning.caption_affixes import CaptionAffixes, build_caption, options_for


@pytest.mark.parametrize(
    "parts, affixes, caption",
    [
        (["a", "b"], {}, "a, b"),
        (["a", "b"], {"separator": " "}, "a b"),
        (
            ["long_hair", "0_0", ">_<", "x_x", "(o)_(o)", "k-on!_(x)"],
            {"underscores_to_spaces": True},
            "long hair, 0_0, >_<, x_x, (o)_(o), k-on! (x)",
        ),
        (["long_hair"], {}, "long_hair"),
        (["Cat", "cat", "long_hair", "long hair"], {}, "Cat, long_hair"),
        (["long_hair", "hair", "1girl"], {"exclude": "Hair, long hair"}, "1girl"),
        (["a", "b"], {"prefix": "art of", "suffix": "4k"}, "art of, a, b, 4k"),
        (["a cat"], {"prefix": "photo of ", "suffix": " at home"}, "photo of a cat at home"),
        (["a"], {"trigger_word": "zib"}, "zib, a"),
        (["a", "zib"], {"trigger_word": "zib"}, "a, zib"),
        (["zibra"], {"trigger_word": "zib"}, "zib, zibra"),
        (["a"], {"trigger_word": "zib", "prefix": "a zib here"}, "a zib here, a"),
        ([], {"trigger_word": "zib"}, "zib"),
        ([], {}, ""),
        (["  a \n b "], {}, "a b"),
    ],
)
def test_tags(parts, affixes, caption):
    assert build_caption(parts, CaptionAffixes(**affixes)) == caption


@pytest.mark.parametrize(
    "sentence, exclude, caption",
    [
        ("a painting of a cat , sitting", "a painting of", "a cat, sitting"),
        ("A Cat on a category", "cat", "A on a category"),
        ("a cat, a dog", "", "a cat, a dog"),
        ("cat", "cat", ""),
    ],
)
def test_words_are_cut_out_of_sentences(sentence, exclude, caption):
    assert build_caption([sentence], CaptionAffixes(exclude=exclude), sentences=True) == caption


def test_a_sentence_is_not_taken_for_tags():
    assert (
        build_caption(["the cat, the cat"], CaptionAffixes(), sentences=True) == "the cat, the cat"
    )


def test_each_captioner_has_its_own_default_for_underscores():
    assert [
        option.default for option in options_for(True) if option.name == "underscores_to_spaces"
    ] == [True]
    assert [
        option.default for option in options_for(False) if option.name == "underscores_to_spaces"
    ] == [False]
    assert CaptionAffixes.of({"trigger_word": "zib", "threshold": 0.5}) == CaptionAffixes(
        trigger_word="zib"
    )
