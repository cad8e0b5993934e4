"""OneTrainer's concepts, as its page saves them: folders, repeats, where captions come from, and
what is not taken over.
"""

import json
import os

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.concepts import read_concepts
from lora_trainer.dataset.folders import folders_of
from lora_trainer.interop.readers import import_settings
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.plan import make_plan
from lora_trainer.settings.config import TrainConfig


def concept(path, *, text=None, image=None, **values):
    """A concept with OneTrainer's defaults."""
    return {
        "__version": 2,
        "name": "",
        "path": str(path),
        "seed": 5,
        "enabled": True,
        "type": "STANDARD",
        "include_subdirectories": False,
        "image_variations": 1,
        "text_variations": 1,
        "balancing": 1.0,
        "balancing_strategy": "REPEATS",
        "loss_weight": 1.0,
        "concept_stats": {},
        "image": {
            "enable_crop_jitter": True,
            "enable_random_flip": False,
            "random_rotate_max_angle": 0.0,
            **(image or {}),
        },
        "text": {
            "prompt_source": "sample",
            "prompt_path": "",
            "enable_tag_shuffling": False,
            "tag_delimiter": ",",
            "keep_tags_count": 1,
            "tag_dropout_enable": False,
            "tag_dropout_mode": "FULL",
            "tag_dropout_probability": 0.0,
            **(text or {}),
        },
        **values,
    }


def draw(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (64, 64), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"of {name}\nor {name}", encoding="utf-8")
    return folder


@pytest.fixture
def write(tmp_path):
    def write(*concepts, name="concepts.json"):
        path = tmp_path / "training_concepts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(list(concepts)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def planned(settings, host):
    return lambda path, **changes: make_plan(
        TrainConfig.parse({**settings, "train_data_dir": str(path), **changes}),
        lora_dir=host.lora_dir,
    )


def shown(plan):
    return {
        sample.picture.path.name: (sample.caption, sample.picture.repeats)
        for sample in plan.samples
    }


def test_folders_repeats_and_captions_are_found_as_there(write, planned, tmp_path):
    cats, dogs, birds = (
        draw(tmp_path / "cats", "a"),
        draw(tmp_path / "dogs", "a big dog"),
        draw(tmp_path / "birds", "c"),
    )
    draw(birds / "deep" / "er", "d")
    draw(cats / "deep", "never")
    draw(cats / "5_kohyas", "nor this")
    (tmp_path / "birds.txt").write_text("a bird\nsome bird\n", encoding="utf-8")
    path = write(
        concept(cats, balancing=3.0),
        concept(dogs, text={"prompt_source": "filename"}),
        concept(
            birds,
            include_subdirectories=True,
            text={"prompt_source": "concept", "prompt_path": str(tmp_path / "birds.txt")},
        ),
    )
    plan = planned(path, caption_lines="alternatives")
    assert shown(plan) == {
        "a.png": ("of a\nor a", 3),
        "a big dog.png": ("a big dog", 1),
        "c.png": ("a bird\nsome bird", 1),
        "d.png": ("a bird\nsome bird", 1),
    }
    assert not any("asks for" in warning or "no caption" in warning for warning in plan.warnings)


def test_paths_are_those_of_the_folder_onetrainer_was_started_in(write, planned, tmp_path):
    draw(tmp_path / "cats", "a")
    assert set(shown(planned(write(concept("cats"))))) == {"a.png"}


def test_a_run_learns_from_concepts(write, settings, host, tmp_path):
    path = write(concept(draw(tmp_path / "cats", "a", "b"), balancing=2.0))
    result = train_lora(
        TrainConfig.parse(
            {**settings, "train_data_dir": str(path), "caption_lines": "alternatives"}
        ),
        host,
    )
    assert result.output_file.is_file()


def test_what_is_not_trained_is_said(write, planned, tmp_path):
    cats = draw(tmp_path / "cats", "a")
    path = write(
        concept(
            cats,
            name="cat",
            balancing=2.5,
            image={"enable_random_hue": True, "enable_random_rotate": True},
            loss_weight=0.5,
        ),
        concept("x", name="off", enabled=False),
        concept("x", name="val", type="VALIDATION"),
        concept("x", name="prior", type="PRIOR_PREDICTION"),
        concept("", name="nowhere"),
    )
    warnings = " ".join(planned(path).warnings)
    for sentence in (
        "The concept off of concepts.json is left out: it is switched off.",
        "The concept val",
        "The concept prior",
        "The concept nowhere",
        "cat: enable_random_rotate True is not taken over: pictures are not rotated",
        "cat: balancing 2.5",
        "cat: loss_weight 0.5",
        (
            "concepts.json asks for Several lines alternatives, Colour jitter 0.05; this run is set"
            " otherwise."
        ),
    ):
        assert sentence in warnings


def test_what_concepts_ask_for_becomes_settings(write, tmp_path):
    path = write(
        concept(
            "/cats",
            balancing=4,
            text={
                "enable_tag_shuffling": True,
                "keep_tags_count": 2,
                "tag_dropout_enable": True,
                "tag_dropout_mode": "RANDOM",
                "tag_dropout_probability": 0.2,
            },
            image={"enable_random_flip": True},
        ),
        concept("/dogs", balancing=2, text={"prompt_source": "filename"}),
    )
    found = import_settings(path)
    assert found.source == "OneTrainer's concepts" and found.settings == {
        "train_data_dir": "/cats",
        "repeats": 4,
        "extra_data_dirs": "2 x /dogs",
        "caption_lines": "alternatives",
        "shuffle_caption": True,
        "caption_tag_dropout_rate": 0.2,
        "keep_tokens": 2,
        "mirror": True,
    }
    assert [(left.key, left.value) for left in found.left_out] == [
        ("/dogs: prompt_source", "filename")
    ]


def test_every_place_that_is_read_from_is_checked(write, tmp_path):
    path = write(
        concept("/cats"),
        concept("/dogs", text={"prompt_source": "concept", "prompt_path": "/prompts.txt"}),
        concept("/off", enabled=False),
    )
    assert set(folders_of(TrainConfig.parse({"train_data_dir": str(path)}))) == {
        str(path),
        "/cats",
        "/dogs",
        "/prompts.txt",
    }


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("[", "cannot be read"),
        ("[" * 200_000, "cannot be read"),
        ("{}", "not a list"),
        ("[]", "not a list"),
        ('[{"name": "x"}]', "not a list"),
        ("[3]", "not a list"),
        ('[{"path": "x", "enabled": false}]', "No concept"),
        ('[{"path": 3}]', "No concept"),
        ('[{"path": "/gone"}]', "does not exist"),
        ('[{"path": "/x", "text": {"prompt_source": "magic"}}]', "expected one of sample"),
        ('[{"path": ".", "text": {"prompt_source": "concept"}}]', "names none"),
        (json.dumps([{"path": "n" * 400}]), "cannot be read"),
        (
            json.dumps([concept(".", text={"prompt_source": "concept", "prompt_path": "n" * 400})]),
            "is not there",
        ),
        ('[{"path": "."}, {"path": "."}]', "among those to learn from already"),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence(write, planned, content, sentence):
    path = write()
    draw(path.parent, "a")
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match=sentence) as caught:
        planned(path)
    assert caught.value.field == "train_data_dir"


@pytest.mark.parametrize(
    "balancing, repeats",
    [(0.2, 1), (1e9, 1000), ("3", 1), (True, 1), (float("inf"), 1), (7, 7), (int("9" * 900), 1)],
)
def test_repeats_are_whole_and_bounded(write, balancing, repeats):
    assert read_concepts(write(concept("/cats", balancing=balancing)))[0][0].repeats == repeats


@pytest.mark.parametrize("name", ["n" * 5000 + ".json", "gone.json"])
def test_a_name_that_no_file_has_is_a_folder_that_is_not_there(planned, name):
    with pytest.raises(Refused) as caught:
        planned(name)
    assert caught.value.code == "no_folder"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name")
def test_a_pipe_is_no_file_of_concepts(tmp_path, planned):
    os.mkfifo(tmp_path / "concepts.json")
    with pytest.raises(Refused, match="is a file, not a folder"):
        planned(tmp_path / "concepts.json")


def test_a_file_of_concepts_is_parsed_once_until_it_changes(tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    file = tmp_path / "concepts.json"
    file.write_text(json.dumps([{"path": "cats"}]), encoding="utf-8")
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(1) or loads(text))
    for _ in range(3):
        assert read_concepts(file)[0][0].path == tmp_path / "cats"
    assert len(parsed) == 1
    file.write_text(json.dumps([{"path": "dogs", "name": "dogs"}]), encoding="utf-8")
    assert read_concepts(file)[0][0].name == "dogs"
