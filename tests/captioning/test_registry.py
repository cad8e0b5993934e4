"""Which captioners there are: ours, and those that the host brings."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.contracts import Captioner, Readiness
from lora_trainer.captioning.registry import Captioners
from lora_trainer.settings.setting import Setting


class OfTheHost(Captioner):
    name, title, help, underscores_to_spaces = "theirs", "Theirs", "Of the host.", False

    def options(self):
        return [Setting(3, "Words", "How many.", name="words", minimum=1, maximum=9)]

    def readiness(self, options):
        return Readiness(True)

    def load(self, options, **more):
        raise NotImplementedError


@pytest.fixture
def with_theirs(tmp_path, label_sets):
    return Captioners(tmp_path / "data", label_sets, lambda path: None, [OfTheHost()])


def test_ours_come_first_and_the_template_last(with_theirs, captioners):
    ours = captioners.names()
    assert ours[-1] == "fixed" and with_theirs.names() == [*ours[:-1], "theirs", "fixed"]
    assert with_theirs.get("theirs").title == "Theirs"
    with pytest.raises(Refused, match="no captioner 'theirs'; there are .*fixed") as caught:
        captioners.get("theirs")
    assert caught.value.code == "not_found" and caught.value.field == "captioner"


def test_options_are_its_own_and_then_the_common_ones(with_theirs):
    captioner, options = with_theirs.read("theirs", {"words": 5})
    names = [option.name for option in with_theirs.options(captioner)]
    assert names[0] == "words" and "trigger_word" in names
    assert list(options) == names and options["words"] == 5
    with pytest.raises(Refused) as caught:
        with_theirs.read("theirs", {"words": 0})
    assert caught.value.field == "words"


def test_each_is_described_with_its_options(with_theirs):
    described = {each["name"]: each for each in with_theirs.all()}
    assert list(described) == with_theirs.names()
    theirs = described["theirs"]
    assert theirs["title"] == "Theirs" and theirs["ready"] and theirs["needs"] == ""
    assert theirs["options"][0]["name"] == "words"
    assert with_theirs.readiness("theirs", {}) == {
        key: theirs[key] for key in ("ready", "needs", "download_bytes", "downloads")
    }


def test_one_that_cannot_be_used_hides_no_other(with_theirs, monkeypatch):
    def broken(self, options):
        raise Refused("its list is broken")

    monkeypatch.setattr(OfTheHost, "readiness", broken)
    described = {each["name"]: each for each in with_theirs.all()}
    assert not described["theirs"]["ready"] and described["theirs"]["needs"] == "its list is broken"
    assert described["fixed"]["ready"]
