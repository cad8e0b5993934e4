"""Counting CLIP's tokens keeps nobody waiting."""

import sys

from lora_trainer.captioning import tokens
from lora_trainer.captioning.tokens import TokenCounter


def test_tokens_are_counted_without_start_and_end():
    counter = TokenCounter()
    counter.wait()
    assert counter(["", "a red circle", "a, b"]) == [0, 3, 3]
    assert counter(["a red circle"]) == [3]


def test_nothing_is_said_while_the_tokenizer_is_loaded(monkeypatch):
    counter = TokenCounter()
    monkeypatch.setattr(counter, "_load", lambda: None)  # never ready
    assert counter(["a red circle"]) is None


def test_without_open_clip_there_are_zeros(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip.tokenizer", None)
    counter = TokenCounter()
    counter.wait()
    assert counter(["a red circle"]) == [0]


def test_what_is_remembered_has_an_end(monkeypatch):
    monkeypatch.setattr(tokens, "MOST_REMEMBERED", 2)
    counter = TokenCounter()
    counter.wait()
    assert counter(["a", "a b", "a b c", "a"]) == [1, 2, 3, 1] and len(counter._counts) <= 2
