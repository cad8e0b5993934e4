"""LoRAs in folders that links lead to are found, and a circle of links ends."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.lora.load import find_lora
from lora_trainer.lora.lora_folder import lora_files
from lora_trainer.runs.output_files import same_names_elsewhere


@pytest.fixture
def lora_dir(tmp_path):
    folder, elsewhere = tmp_path / "Lora", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "cat.safetensors").touch()
    (folder / "dog.safetensors").touch()
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    (folder / "sub" / "back").symlink_to(folder, target_is_directory=True)
    return folder


def test_each_file_once(lora_dir):
    assert sorted(lora_files(lora_dir)) == [
        lora_dir / "dog.safetensors",
        lora_dir / "linked" / "cat.safetensors",
    ]
    assert list(lora_files(lora_dir / "gone")) == []


def test_a_lora_behind_a_link_can_be_gone_on_from(lora_dir):
    assert find_lora("cat", lora_dir) == lora_dir / "linked" / "cat.safetensors"
    assert find_lora("dog.safetensors", lora_dir) == lora_dir / "dog.safetensors"
    with pytest.raises(Refused, match="There is no LoRA"):
        find_lora("cow", lora_dir)


def test_a_circle_shows_no_name_twice(lora_dir):
    found = same_names_elsewhere(lora_dir / "new" / "cat.safetensors", lora_dir)
    assert list(found) == [lora_dir / "linked" / "cat.safetensors"]
    again = same_names_elsewhere(lora_dir / "new" / "dog.safetensors", lora_dir)
    assert list(again) == [lora_dir / "dog.safetensors"]
