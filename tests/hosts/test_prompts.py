"""Prompts as the WebUI reads them. The expected values of `parse_weights` stand in the WebUI's own
doctest (modules/prompt_parser.py, 1.10.1).
"""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.hosts.prompts import (
    BREAK,
    CHUNK_TOKENS,
    Chunk,
    parse_weights,
    split_chunks,
    split_loras,
)

COMMA = 1


def tokens(text: str) -> list[int]:
    """A token for each word: a comma is 1, numbers are themselves."""
    return [COMMA if word == "," else int(word) for word in text.replace(",", " , ").split()]


def words(count: int, first: int = 100) -> str:
    return " ".join(str(first + number) for number in range(count))


def split(text: str, most_tokens: int = 225) -> list[list[int]]:
    return [
        chunk.tokens
        for chunk in split_chunks(parse_weights(text), tokens, COMMA, most_tokens=most_tokens)
    ]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("", [("", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("BREAKFAST: 8)", [("BREAKFAST: 8)", 1.0)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3)", 1.1)]),
    ],
)
def test_weights(prompt, parts):
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize("count", [0, 1, 74, 75])
def test_a_short_prompt_is_one_chunk(count):
    assert [len(chunk) for chunk in split(words(count))] == [count]


def test_a_long_prompt_is_cut_every_75_tokens():
    assert split(words(200)) == [tokens(words(75)), tokens(words(75, 175)), tokens(words(50, 250))]


def test_a_chunk_rather_ends_at_a_near_comma():
    """What stands after it goes into the next chunk; a comma further than 20 tokens back is left
    alone.
    """
    near, far = f"{words(60)}, {words(30, 200)}", f"{words(50)}, {words(30, 200)}"
    assert split(near) == [tokens(words(60) + ","), tokens(words(30, 200))]
    assert [len(chunk) for chunk in split(far)] == [75, 6]
    at_the_end = split(f"{words(75)}, {words(3, 200)}")
    assert at_the_end == [tokens(words(75)), [COMMA, *tokens(words(3, 200))]]


def test_weights_follow_their_tokens():
    chunks = split_chunks(
        parse_weights(f"{words(60)}, ({words(20, 200)}:1.5)"), tokens, COMMA, most_tokens=225
    )
    assert [chunk.weights for chunk in chunks] == [[1.0] * 61, [1.5] * 20]


def test_break_begins_a_chunk():
    assert split("1 2 BREAK 3") == [[1, 2], [3]]
    assert split("BREAK 3") == [[], [3]] and split("3 BREAK") == [[3]]


def test_longer_prompts_are_cut():
    assert split(words(200), 75) == [tokens(words(75))] and split(words(200), 100) == [
        tokens(words(75)),
        tokens(words(25, 175)),
    ]
    assert len(split(f"{words(56)}, {words(17, 200)}, {words(60, 300)}", 75)) == 1
    assert CHUNK_TOKENS == 75 and Chunk() == Chunk([], [])


def test_loras_are_taken_out():
    assert split_loras("a cat <lora:my style:0.8>, sitting") == (
        "a cat , sitting",
        [("my style", 0.8)],
    )
    assert split_loras("<lora:x><lora:y:-1>") == ("", [("x", 1.0), ("y", -1.0)])
    assert split_loras("no tag <b>") == ("no tag <b>", [])
    with pytest.raises(Refused, match="'much' is no number"):
        split_loras("<lora:x:much>")
