"""The zib: its data set on disk, and a judge that knows it from everything the base can draw."""

import csv

import numpy as np
import pytest
from PIL import Image

from lora_trainer.demo import concept, world


@pytest.mark.parametrize("background", concept.backgrounds_for_judging())
def test_the_judge_sees_every_zib(background):
    for centre, radius in concept.PLACEMENTS:
        assert concept.shows_zib(concept.paint_zib(background, centre, radius))


def test_the_judge_sees_no_zib_in_the_world():
    rng = np.random.RandomState(0)
    scenes = [world.random_scene(rng, held_out=bool(number % 2)) for number in range(60)]
    assert not any(concept.shows_zib(world.paint(scene, rng)) for scene in scenes)


def test_the_judge_sees_no_zib_upside_down_or_without_its_eye():
    picture = concept.paint_zib("blue")
    assert not concept.shows_zib(np.ascontiguousarray(picture[::-1]))
    blind = picture.copy()
    blind[(picture >= 245).all(-1)] = np.uint8(concept.PINK * 255)  # the white of the eye
    assert concept.shows_zib(picture) and not concept.shows_zib(blind)


def test_the_data_set_on_disk(tmp_path):
    folder = concept.write_dataset(tmp_path / "zib")
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 16
    assert len({path.read_bytes() for path in pictures}) == 16
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == [path.name for path in pictures]
    for path, row in zip(pictures, rows):
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() == row["prompt"]
        assert row["prompt"].startswith(concept.TRIGGER + " on a")
        with Image.open(path) as picture:
            assert concept.shows_zib(np.asarray(picture.convert("RGB")))
    assert {row["prompt"].split()[3] for row in rows} == set(concept.TRAINING_BACKGROUNDS)
