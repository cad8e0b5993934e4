"""Which names a LoRA may have; TrainConfig refuses the others."""

import pytest

from lora_trainer.settings.lora_name import check_name


@pytest.mark.parametrize("name", ["猫の絵", "🎨 art", "a b-c_d.1", "Ünïcode"])
def test_good_names(name):
    assert check_name(name) == name
