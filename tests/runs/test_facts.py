"""What a training state says of its run."""

import pytest

from lora_trainer.base.errors import Stopped
from lora_trainer.runs.facts import model_facts, run_facts
from lora_trainer.settings.config import TrainConfig
from tests.support.plans import planned


def facts(settings, host, **changes):
    config = TrainConfig.parse({**settings, **changes})
    return run_facts(config, planned(settings, host, **changes))


def test_pictures_are_known_by_name_content_caption_and_place(host, settings, pictures):
    before = facts(settings, host)
    assert sorted(before["pictures"]) == [f"{number}.png" for number in range(6)]
    assert before["total_steps"] == 6 and before["config"]["lora_rank"] == 4
    (pictures / "0.txt").write_text("something else", encoding="utf-8")
    (pictures / "1.png").write_bytes((pictures / "2.png").read_bytes())
    after = facts(settings, host)
    changed = {
        (name, fact)
        for name, found in after["pictures"].items()
        for fact in found
        if found[fact] != before["pictures"][name][fact]
    }
    assert {("0.png", "caption"), ("1.png", "content")} <= changed
    assert {name for name, _ in changed} == {"0.png", "1.png"}


def test_a_picture_in_another_resolution_has_a_name_of_its_own(host, settings):
    names = facts(settings, host, extra_resolutions="128")["pictures"]
    assert "0.png" in names and "0.png in 128 px" in names


def test_reading_the_pictures_can_be_stopped(host, settings):
    config = TrainConfig.parse(settings)
    with pytest.raises(Stopped):
        run_facts(config, planned(settings, host), should_stop=lambda: True)


def test_a_model_is_known_by_plain_values(host):
    found = model_facts(host.model)
    assert (found["name"], found["family"], found["dtype"]) == ("tiny", "sd1", "torch.float32")
