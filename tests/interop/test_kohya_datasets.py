"""Dataset configs of sd-scripts that are not as they should be."""

import json

import pytest

from lora_trainer.interop.readers import import_settings


@pytest.mark.parametrize("subsets", [3, True, "a", {"image_dir": "/x"}])
def test_subsets_that_are_no_list_are_passed_over(tmp_path, subsets):
    path = tmp_path / "dataset.json"
    dataset = {"resolution": 512, "subsets": subsets}
    path.write_text(json.dumps({"datasets": [dataset], "network_dim": 8}), encoding="utf-8")
    found = import_settings(path)
    assert found.settings["lora_rank"] == 8 and "train_data_dir" not in found.settings
