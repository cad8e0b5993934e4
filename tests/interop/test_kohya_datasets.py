"""kohya's dataset configs, alone and inside a config."""

import json

import pytest

from lora_trainer.interop.readers import import_settings
from tests.support.foreign_settings import imported, left, needs_toml

DATASETS = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = [512, 768]
batch_size = 4
enable_bucket = true

  [[datasets.subsets]]
  image_dir = "/pictures/hoge"
  num_repeats = 3
  class_tokens = "hoge girl"

  [[datasets.subsets]]
  image_dir = "/pictures/fuga"
  num_repeats = 5
  keep_tokens = 2

  [[datasets.subsets]]
  is_reg = true
  image_dir = "/reg"
  class_tokens = "human"
  keep_tokens = 0

[[datasets]]
resolution = 768

  [[datasets.subsets]]
  image_dir = "/pictures/piyo"
"""


@needs_toml
def test_kohyas_dataset_config(tmp_path):
    found = imported(tmp_path, DATASETS, "dataset.toml")
    assert found.source == "kohya's dataset config"
    assert found.settings == {
        "enable_bucket": True,
        "caption_extension": ".txt",
        "shuffle_caption": True,
        "keep_tokens": 1,
        "resolution": 627,
        "batch_size": 4,
        "train_data_dir": "/pictures/hoge",
        "repeats": 3,
        "extra_data_dirs": "5 x /pictures/fuga\n1 x /pictures/piyo",
        "reg_data_dir": "/reg",
    }
    assert [(item.key, item.value) for item in found.left_out] == [
        ("datasets[0] keep_tokens", 2),
        ("datasets[1] resolution", 768),
        ("class_tokens", "hoge girl"),
    ]


IN_TWO_SIZES = """
[[datasets]]
resolution = "512,512"
batch_size = 4
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "/pictures"
  num_repeats = 3

[[datasets]]
resolution = [1024, 768]
batch_size = 2
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "/pictures"
  num_repeats = 3
"""


@needs_toml
def test_data_sets_of_the_same_folders_are_one_in_several_resolutions(tmp_path):
    found = imported(tmp_path, IN_TWO_SIZES, "dataset.toml")
    assert found.settings == {
        "resolution": 512,
        "extra_resolutions": "887",
        "batch_size": 4,
        "enable_bucket": True,
        "train_data_dir": "/pictures",
        "repeats": 3,
    }
    assert [(item.key, item.value) for item in found.left_out] == [("datasets[1] batch_size", 2)]
    other = imported(
        tmp_path,
        IN_TWO_SIZES.replace(
            'image_dir = "/pictures"\n  num_repeats = 3\n\n',
            'image_dir = "/more"\n  num_repeats = 3\n\n',
        ),
        "other.toml",
    )
    assert "extra_resolutions" not in other.settings and "datasets[1] resolution" in left(other)


@needs_toml
def test_a_config_with_its_data_sets_in_it(tmp_path):
    found = imported(
        tmp_path,
        'network_dim = 8\nlearning_rate = 1e-4\ndataset_config = "d.toml"\n' + DATASETS,
        "run.toml",
    )
    assert (
        found.settings["lora_rank"] == 8
        and found.settings["train_data_dir"] == "/pictures/hoge"
        and "dataset_config" in left(found)
    )


@pytest.mark.parametrize("subsets", [3, True, "a", {"image_dir": "/x"}])
def test_subsets_that_are_no_list_are_passed_over(tmp_path, subsets):
    path = tmp_path / "dataset.json"
    dataset = {"resolution": 512, "subsets": subsets}
    path.write_text(json.dumps({"datasets": [dataset], "network_dim": 8}), encoding="utf-8")
    found = import_settings(path)
    assert found.settings["lora_rank"] == 8 and "train_data_dir" not in found.settings
