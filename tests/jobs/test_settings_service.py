"""What may change when a run goes on, and how paths are compared."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.editor.library import Library
from lora_trainer.jobs.settings_service import SettingsReader


@pytest.fixture
def read(tmp_path):
    return SettingsReader("standalone", Library(tmp_path / "datasets"), lambda path: None)


def test_sound_changes_are_taken_by_our_names_and_kohyas(read, settings):
    after = read.changed(
        settings,
        {
            "max_train_steps": 9,
            "lr_scheduler": "linear",
            "learning_rate": "0.5",
            "lora_rank": settings["lora_rank"],
        },
    )
    assert (after.max_train_steps, after.scheduler, after.learning_rate, after.lora_rank) == (
        9,
        "linear",
        0.5,
        settings["lora_rank"],
    )
    assert (
        read.differences(settings, {**settings, "epochs": 7}) == {"epochs": 7}
        and read.differences(settings, settings) == {}
    )


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"lora_rank": 8}, "lora_rank"),
        ({"network_dim": 8}, "lora_rank"),
        ({"seed": 7, "epochs": 2}, "seed"),
        ({"output_name": "other"}, "output_name"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 4}, "batch_size"),
    ],
)
def test_others_are_refused_with_their_name(read, settings, changes, field):
    with pytest.raises(Refused) as caught:
        read.changed(settings, changes)
    assert (caught.value.field, caught.value.code) == (field, "bad_value")


def test_an_alpha_left_out_is_the_rank_also_for_jobs_that_say_16(read, settings):
    older = {**settings, "lora_rank": 16, "lora_alpha": 16.0}
    assert (
        read.differences(older, {**older, "lora_alpha": 0})
        == {}
        == read.differences({**older, "lora_alpha": 0}, older)
    )
    with pytest.raises(Refused, match="it was 16.0, and is to be 8.0"):
        read.differences({**older, "lora_rank": 8}, {**older, "lora_rank": 8, "lora_alpha": 0})


def test_another_spelling_of_a_path_is_no_change(read, settings, pictures, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert read.differences(settings, {**settings, "train_data_dir": "pictures"}) == {}
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(Refused, match="cannot change in the middle") as caught:
        read.differences(settings, {**settings, "train_data_dir": "elsewhere"})
    assert caught.value.field == "train_data_dir"


def test_the_path_of_a_lora_is_checked_and_its_name_is_not(tmp_path, settings):
    def nowhere(path):
        raise Refused("not there", code="forbidden_path")

    read = SettingsReader("standalone", Library(tmp_path / "datasets"), nowhere)
    assert read.parse({**settings, "init_lora": "zib"}).init_lora == "zib"
    for path in ("/etc/zib.safetensors", "../zib.safetensors", "~/zib.safetensors"):
        with pytest.raises(Refused) as caught:
            read.parse({**settings, "init_lora": path})
        assert (caught.value.field, caught.value.code) == ("init_lora", "forbidden_path")
