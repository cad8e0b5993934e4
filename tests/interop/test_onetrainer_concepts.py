"""OneTrainer's concepts: folders of pictures where they may be read."""

import json

from tests.support.onetrainer_settings import SAVED, imported

CONCEPTS = [
    {
        "name": "zib",
        "path": "/data/zib",
        "enabled": True,
        "type": "STANDARD",
        "balancing": 3.0,
        "balancing_strategy": "REPEATS",
        "image": {"enable_random_flip": True},
        "text": {"prompt_source": "sample", "enable_tag_shuffling": True, "keep_tags_count": 2},
    },
    {"path": "/data/more", "balancing": 0.5},
    {"path": "/data/off", "enabled": False},
    {"path": "/data/measured", "type": "VALIDATION"},
]


def test_its_concepts_where_they_may_be_read(tmp_path):
    (tmp_path / "training_concepts").mkdir()
    (tmp_path / "training_concepts" / "concepts.json").write_text(
        json.dumps(CONCEPTS), encoding="utf-8"
    )
    assert (
        "train_data_dir" not in imported(tmp_path, SAVED).settings
    )  # it names a file of this machine, and may come from anybody
    for found in (
        imported(tmp_path, SAVED, look_around=True),
        imported(tmp_path, {**SAVED, "concepts": CONCEPTS}),
    ):
        expected = {
            "train_data_dir": "/data/zib",
            "repeats": 3,
            "extra_data_dirs": "1 x /data/more",
            "mirror": True,
            "shuffle_caption": True,
            "keep_tokens": 2,
        }
        assert {name: found.settings.get(name) for name in expected} == expected
        assert {("concept", "/data/measured"), ("/data/more: balancing", 0.5)} <= {
            (left.key, left.value) for left in found.left_out
        }


def test_a_concept_that_is_left_out_is_named_whole(tmp_path):
    unused = {"name": "portraits of cats", "path": "/data/off", "enabled": False}
    found = imported(tmp_path, {**SAVED, "concepts": [*CONCEPTS, unused]})
    assert ("concept", "portraits of cats", "it is switched off") in {
        (left.key, left.value, left.reason) for left in found.left_out if left.key == "concept"
    }
