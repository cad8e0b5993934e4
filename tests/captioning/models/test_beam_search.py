"""Beam search against trying everything, and against the likeliest word each time."""

import itertools

import pytest
import torch

from lora_trainer.captioning.models.beam_search import BeamSearch, _seems_over, beam_search

VOCABULARY, START, END = 5, 0, 1


def table_logits(tables, beams, seen=None):
    """A made-up language, another one for each picture: logits depend on picture, position and the
    word before.
    """

    def next_logits(sentences):
        rows = torch.arange(len(sentences)) // beams
        if seen is not None:
            seen.append(tuple(sentences.shape))
        return torch.stack(
            [
                tables[row][sentence.shape[0] - 1, sentence[-1]]
                for row, sentence in zip(rows.tolist(), sentences)
            ]
        )

    return next_logits


def best_of_all(table, max_length, min_length, penalty):
    """Score every sequence there is."""
    shares, found = table.log_softmax(-1), []
    for length in range(1, max_length + 1):
        for words in itertools.product(
            [word for word in range(VOCABULARY) if word != END], repeat=length - 1
        ):
            path = [START, *words]
            score = sum(
                shares[place, path[place], path[place + 1]].item() for place in range(length - 1)
            )
            if length > min_length:
                found.append(
                    (
                        (score + shares[length - 1, path[-1], END].item()) / length**penalty,
                        list(words),
                    )
                )
    for words in itertools.product(
        [word for word in range(VOCABULARY) if word != END], repeat=max_length
    ):
        path = [START, *words]
        found.append(
            (
                sum(
                    shares[place, path[place], path[place + 1]].item()
                    for place in range(max_length)
                )
                / max_length**penalty,
                list(words),
            )
        )
    return max(found)


@pytest.mark.parametrize("penalty, min_length", [(1.0, 0), (0.0, 0), (1.0, 2), (2.0, 1)])
def test_with_enough_beams_the_best_of_all_sentences_is_found(penalty, min_length):
    tables = [
        torch.randn(4, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
        for seed in range(6)
    ]
    found = beam_search(
        table_logits(tables, 400),
        len(tables),
        BeamSearch(
            START,
            END,
            beams=400,
            max_length=4,
            min_length=min_length,
            length_penalty=penalty,
        ),
    )
    expected = [best_of_all(table, 4, min_length, penalty)[1] for table in tables]
    assert found == expected and len({tuple(each) for each in found}) > 2


def test_one_beam_takes_the_likeliest_word_each_time():
    tables = [torch.randn(6, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(9))]
    tables[0][:, :, END] = -50
    found = beam_search(table_logits(tables, 1), 1, BeamSearch(START, END, beams=1, max_length=6))[
        0
    ]
    word, expected = START, []
    for place in range(6):
        word = int(tables[0][place, word].argmax())
        expected.append(word)
    assert found == expected


def test_lengths_are_kept_and_it_stops_when_nothing_seems_to_win_any_more():
    table = torch.zeros(30, VOCABULARY, VOCABULARY)
    table[:, :, END] = 40  # would end at once
    seen = []
    found = beam_search(
        table_logits([table], 3, seen),
        1,
        BeamSearch(START, END, beams=3, max_length=30, min_length=4),
    )
    assert len(found[0]) == 4 and len(seen) < 8


@pytest.mark.parametrize(
    "penalty, best, sure", [(1.0, -3.0 / 10, False), (0.0, -3.0, True), (-1.0, -3.0 * 2, True)]
)
def test_the_end_is_a_guess_only_where_longer_ones_are_preferred(penalty, best, sure):
    """One word of -0.7 has ended; what runs has -3.0 and may take up to ten words, `best` at the
    best.
    """
    finished = [(-0.7, [5])]
    search = BeamSearch(START, END, beams=1, max_length=10, length_penalty=penalty)
    assert _seems_over(finished, -3.0, 1, search) and (finished[0][0] >= best) == sure
