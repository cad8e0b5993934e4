"""CoCa: a small model of the true class, on the real loading path; its sentences are random, their
making is not.
"""

import pytest
import torch
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.models.coca import sentence_of

IMAGES = [Image.new("RGB", (50, 40), "red"), Image.effect_noise((40, 70), 90).convert("RGB")]


@pytest.fixture
def options(coca_folder):
    return {"model": "custom", "model_name": str(coca_folder), "max_length": 6, "min_length": 2}


@pytest.mark.parametrize("beams", [1, 4])
def test_every_picture_gets_a_sentence_and_the_batch_does_not_matter(load, options, beams):
    loaded = load("coca", num_beams=beams, **options)
    together = loaded.caption(IMAGES, [])
    assert (
        loaded.sentences
        and len(together) == 2
        and all(len(each) == 1 and each[0] for each in together)
    )
    assert [loaded.caption([image], [])[0] for image in IMAGES] == together


def test_one_beam_says_what_the_model_finds_likeliest(load, options):
    """Word for word, with the model's own forward pass and no loop of ours."""
    loaded = load("coca", num_beams=1, **{**options, "min_length": 0})
    model, tokens = loaded._model, [loaded._search.start]
    pixels = loaded._transform(IMAGES[1])[None]
    with torch.no_grad():
        latent, embeddings = model._encode_image(pixels)
        for _ in range(6):
            word = int(
                model(
                    pixels,
                    torch.tensor([tokens]),
                    image_latent=latent,
                    image_embs=embeddings,
                    **loaded._arguments,
                )["logits"][0, -1].argmax()
            )
            if word == loaded._search.end:
                break
            tokens.append(word)
    assert loaded._search.start == 49406 and loaded._search.end == 49407
    assert loaded.caption([IMAGES[1]], [])[0] == [sentence_of(tokens[1:])]


def test_tokens_become_a_sentence():
    import open_clip

    tokens = open_clip.tokenize(["a cat, sitting on a table."])[0].tolist()
    assert sentence_of(tokens[1 : tokens.index(49407)]) == "a cat, sitting on a table"
    assert sentence_of(tokens) == "a cat, sitting on a table" and sentence_of([]) == ""


def test_what_cannot_be_is_refused(load, captioners, clip_folder, options):
    with pytest.raises(Refused, match="writes no sentences"):
        load("coca", model="custom", model_name=str(clip_folder))
    with pytest.raises(Refused, match="longer than the longest"):
        captioners.readiness("coca", {"max_length": 5, "min_length": 9})
    assert (
        captioners.readiness("coca", options)["ready"]
        and captioners.readiness("coca", {})["download_bytes"] > 2e9
    )
