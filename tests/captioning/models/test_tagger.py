"""WD taggers: a small timm ViT saved as a folder, whose answers are known."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.caption_affixes import CaptionAffixes, build_caption
from lora_trainer.captioning.models.tagger import Preprocessing, Tag, choose_tags, read_tags

IMAGE = Image.new("RGB", (50, 40), "red")


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, ["long_hair", "1girl", "0_0"]),
        ({"general_threshold": 0.9}, ["long_hair"]),
        ({"character_threshold": 0.8}, ["miku_(x)", "long_hair", "1girl", "0_0"]),
        ({"general_threshold": 1.0, "rating": True}, ["explicit"]),
    ],
)
def test_thresholds_for_general_and_character_tags(load, tagger_folder, options, words):
    loaded = load("wd-tagger", model="custom", folder=str(tagger_folder), **options)
    assert loaded.caption([IMAGE, IMAGE], []) == [words, words] and not loaded.sentences


def test_underscores_become_spaces_by_default_but_faces_stay(captioners, load, tagger_folder):
    loaded = load("wd-tagger", model="custom", folder=str(tagger_folder), character_threshold=0.5)
    affixes = CaptionAffixes.of(captioners.read("wd-tagger", {})[1])
    assert (
        build_caption(loaded.caption([IMAGE], [])[0], affixes) == "miku (x), long hair, 1girl, 0_0"
    )


def test_pictures_are_padded_white_and_turned_to_blue_first():
    wide = Image.new("RGB", (40, 20), (255, 0, 51))
    pixels = Preprocessing(20, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(wide)
    assert pixels.shape == (3, 20, 20) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[:, 10, 10], torch.tensor([51 / 127.5 - 1, -1, 1])) and torch.equal(
        pixels[:, 0, 10], torch.ones(3)
    )
    assert torch.equal(pixels[:, 19, 10], torch.ones(3)) and Preprocessing(
        8, (0.5,) * 3, (0.5,) * 3
    )(Image.new("RGB", (5, 30))).shape == (3, 8, 8)


def test_pixels_reach_the_model_as_timm_would_prepare_them(load, tagger_folder, monkeypatch):
    loaded = load("wd-tagger", model="custom", folder=str(tagger_folder))
    seen = []
    forward = loaded._model.forward
    monkeypatch.setattr(
        loaded._model, "forward", lambda pixels: (seen.append(pixels), forward(pixels))[1]
    )
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (32, 32, 3), np.uint8))
    loaded.caption([picture], [])
    expected = (
        torch.from_numpy(np.asarray(picture)[..., ::-1].copy()).permute(2, 0, 1).float() / 255 - 0.5
    ) / 0.5
    assert torch.allclose(seen[0][0], expected, atol=1e-5)


def test_the_surest_comes_first_within_its_kind():
    tags = [Tag("g1", 0), Tag("c1", 4), Tag("g2", 0), Tag("c2", 4), Tag("r1", 9), Tag("r2", 9)]
    assert choose_tags(
        [0.4, 0.9, 0.8, 0.95, 0.2, 0.1], tags, general=0.35, character=0.85, rating=True
    ) == ["c2", "c1", "g2", "g1", "r1"]


def test_what_is_wrong_with_a_folder_is_said(captioners, load, tagger_folder):
    assert captioners.readiness("wd-tagger", {"model": "custom", "folder": str(tagger_folder)})[
        "ready"
    ]
    with pytest.raises(Refused, match="6 tags|7 tags"):
        read_tags(tagger_folder / "selected_tags.csv", outputs=7)
    (tagger_folder / "selected_tags.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Refused, match="columns name and category"):
        load("wd-tagger", model="custom", folder=str(tagger_folder))
    (tagger_folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(Refused, match="cannot be loaded"):
        load("wd-tagger", model="custom", folder=str(tagger_folder))
    (tagger_folder / "config.json").unlink()
    with pytest.raises(Refused, match="lacks config.json"):
        captioners.readiness("wd-tagger", {"model": "custom", "folder": str(tagger_folder)})


def test_a_download_is_announced_with_its_size(captioners):
    readiness = captioners.readiness("wd-tagger", {"model": "wd-eva02-large-tagger-v3"})
    assert (
        readiness["download_bytes"] > 1.2e9
        and "SmilingWolf/wd-eva02-large-tagger-v3" in readiness["needs"]
        and "1.26 GB" in readiness["needs"]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model_args": {"checkpoint_path": "{trap}"}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"scriptable": True}},
        {"model_args": {"img_size": {"a": 1}}},
        {"model_args": ["checkpoint_path"]},
        {"architecture": "local-dir:{folder}"},
        {"architecture": "hf-hub:someone/else"},
        {"architecture": 1},
    ],
)
def test_nothing_in_a_config_runs_or_fetches_anything(load, tagger_folder, tmp_path, change):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    torch.save({"a": Trap()}, tagger_folder / "trap.pth")
    config = json.loads((tagger_folder / "config.json").read_text())
    text = (
        json.dumps(change)
        .replace("{trap}", str(tagger_folder / "trap.pth"))
        .replace("{folder}", str(tagger_folder))
    )
    (tagger_folder / "config.json").write_text(json.dumps({**config, **json.loads(text)}))
    with pytest.raises(Refused) as caught:
        load("wd-tagger", model="custom", folder=str(tagger_folder))
    assert not (tmp_path / "sprung").exists() and caught.value.code == "not_safe", caught.value


@pytest.mark.parametrize(
    "architecture, arguments",
    [
        (
            "vit_tiny_patch16_224",
            {
                "img_size": 32,
                "class_token": False,
                "global_pool": "avg",
                "fc_norm": False,
                "act_layer": "gelu_tanh",
            },
        ),
        (
            "swinv2_tiny_window8_256",
            {"act_layer": "gelu_tanh", "img_size": 64, "window_size": [2, 2]},
        ),
        ("convnext_atto", {"act_layer": "gelu_tanh", "drop_path_rate": 0.4, "norm_eps": 1e-6}),
    ],
)
def test_what_the_known_taggers_say_is_understood(tagger_folder, architecture, arguments):
    from lora_trainer.captioning.models import tagger

    assert tagger.architecture_of(
        {"architecture": architecture, "model_args": arguments}, tagger_folder
    ) == (architecture, arguments)
