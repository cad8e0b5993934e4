"""Presets: the package's, and one's own, which hold no places and survive whatever is called or
lies like one.
"""

from pathlib import Path

import pytest
import yaml

from lora_trainer.base.errors import Refused
from lora_trainer.interop.presets import OwnPresets, as_file, belongs, find_preset, package_presets
from lora_trainer.settings.advice import STYLE_PICTURES, SUBJECT_PICTURES, in_words
from lora_trainer.settings.config import TrainConfig

PLACES = {
    "train_data_dir": "/x",
    "extra_data_dirs": "/y",
    "metadata_path": "/x/m.csv",
    "base_model": "/m.safetensors",
    "output_name": "zib",
    "output_dir": "/o",
    "logging_dir": "/l",
    "reg_data_dir": "/r",
    "init_lora": "other",
    "trigger_word": "zib",
    "overwrite": True,
    "task_type": "stable-diffusion",
}


@pytest.fixture
def own(tmp_path):
    return OwnPresets(tmp_path / "data" / "presets")


def test_the_packages_are_valid_ordered_and_name_one_number_of_pictures():
    found = package_presets()
    assert [preset["name"] for preset in found] == [
        "character",
        "anime_character",
        "style",
        "ink_painting",
        "object",
        "product",
        "quick_try",
    ]
    for preset in found:
        config = TrainConfig.parse(preset["settings"])
        assert (
            preset["title"]
            and not preset["own"]
            and not PLACES.keys() & preset["settings"].keys()
            and config.alpha <= config.lora_rank
        )
    texts = " ".join(preset["help"] for preset in found)
    assert (
        texts.count(in_words(SUBJECT_PICTURES)) == 4
        and texts.count(in_words(STYLE_PICTURES)) == 2
        and "{" not in texts
    )


@pytest.mark.parametrize("name", ["水墨画", "Neon 🌃", "a.b", "ä" * 80])
def test_saved_renamed_and_deleted(own, name):
    assert own.all() == []
    saved = own.save(
        name,
        {"network_dim": "8", "learning_rate": 2e-4, "mirror": True, "seed": 42, **PLACES},
        help="für Tusche",
    )
    assert saved == {
        "name": name,
        "title": name,
        "help": "für Tusche",
        "settings": {"learning_rate": 2e-4, "lora_rank": 8, "mirror": True},
        "own": True,
        "problem": "",
    }
    assert own.all() == [saved] and find_preset(name, own._folder) == saved
    assert own.rename(name, "其他")["settings"] == saved["settings"] and [
        preset["name"] for preset in own.all()
    ] == ["其他"]
    own.delete("其他")
    assert own.all() == [] and list(own._folder.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", " ", "../evil", "a/b", "a\\b", "con", ".x", "a:b", "x" * 300, "a\x00b", "a\nb"]
)
def test_names_that_no_file_can_have(own, name):
    for act in (
        lambda: own.save(name, {"lora_rank": 8}),
        lambda: own.rename(name, "x"),
        lambda: own.delete(name),
        lambda: own.get(name),
    ):
        with pytest.raises(Refused) as caught:
            act()
        assert (
            caught.value.code == "bad_name"
            and caught.value.field == "name"
            and "file name" in caught.value.message
        )
    assert own.all() == []


def test_one_that_is_there_is_replaced_only_when_asked(own):
    own.save("neon", {"lora_rank": 8})
    for taken in ("neon", "Neon", "character", "Anime character"):
        with pytest.raises(Refused, match="already") as caught:
            own.save(taken, {"lora_rank": 4})
        assert caught.value.code == "name_taken"
    assert own.get("neon")["settings"] == {"lora_rank": 8} and own.save(
        "neon", {"lora_rank": 4}, overwrite=True
    )["settings"] == {"lora_rank": 4}
    own.save("other", {"lora_rank": 2})
    with pytest.raises(Refused, match="already"):
        own.rename("other", "neon")
    assert own.rename("other", "Other")["name"] == "Other"


def test_replacing_one_takes_no_other_name_along(own):
    own.save("neon", {"lora_rank": 8})
    for taken in ("NEON", "style", "Style"):
        with pytest.raises(Refused, match="already") as caught:
            own.save(taken, {"lora_rank": 4}, overwrite=True)
        assert caught.value.code == "name_taken"
    assert [preset["name"] for preset in own.all()] == ["neon"] and own.get("neon")["settings"] == {
        "lora_rank": 8
    }


def test_several_resolutions_are_kept_together(own):
    assert own.save("sizes", {"resolution": "512, 768"})["settings"] == {
        "resolution": 512,
        "extra_resolutions": "768",
    }


def test_what_is_wrong_costs_nothing(own):
    own.save("neon", {"lora_rank": 8})
    for settings in ({"lora_rank": 0}, {"lora_rang": 4}, {"output_name": "only a name"}, {}):
        with pytest.raises(Refused):
            own.save("neon", settings, overwrite=True)
    with pytest.raises(Refused):
        own.delete("character")
    assert own.get("neon")["settings"] == {"lora_rank": 8} and len(package_presets()) == 7


@pytest.mark.parametrize(
    "text", ["[", "a: b", "settings: 3", "settings: {lora_rank: [" + "[" * 5000, "\xff"]
)
def test_a_damaged_file_is_shown_with_what_is_wrong_and_can_be_deleted(own, text):
    own.save("good", {"lora_rank": 8})
    (own._folder / "bad.yaml").write_bytes(text.encode("latin-1"))
    bad, good = own.all()
    assert (
        (bad["name"], bad["settings"]) == ("bad", {})
        and "bad.yaml" in bad["problem"]
        and good["settings"] == {"lora_rank": 8}
    )
    with pytest.raises(Refused):
        find_preset("bad", own._folder)
    own.delete("bad")
    assert [preset["name"] for preset in own.all()] == ["good"]


def test_the_names_of_the_packages_presets_stay_theirs(own):
    for name in ("character", "Ink painting"):
        with pytest.raises(Refused, match="Choose another name") as caught:
            own.save(name, {"lora_rank": 8}, overwrite=True)
        assert caught.value.code == "name_taken" and "Replace it" not in caught.value.message
    assert own.all() == []


def test_a_shared_file_brings_no_places_and_takes_no_name(own, tmp_path):
    shared = tmp_path / "neon.yaml"
    shared.write_text(
        yaml.safe_dump(
            {
                "title": "neon",
                "help": "x",
                "settings": {"rank": 8, "lora_alpha": "wide", "new_thing": 1, **PLACES},
            }
        ),
        encoding="utf-8",
    )
    first, left_out = own.take(shared, "neon")
    assert first["settings"] == {"lora_rank": 8} and {
        "lora_alpha",
        "new_thing",
        "output_dir",
        "train_data_dir",
        "init_lora",
    } <= {left.key for left in left_out}
    assert (
        own.take(shared, "neon")[0]["name"] == "neon-2"
        and own.take(shared, "character")[0]["name"] == "character-2"
    )
    (tmp_path / "again.yaml").write_text(as_file(first), encoding="utf-8")
    assert own.take(tmp_path / "again.yaml", "again")[0]["settings"] == first[
        "settings"
    ] and find_preset(str(tmp_path / "again.yaml"), own._folder)["settings"] == {"lora_rank": 8}
    (tmp_path / "run.yaml").write_text("lora_rank: 8\n", encoding="utf-8")
    with pytest.raises(Refused, match="Import settings"):
        own.take(tmp_path / "run.yaml", "run")


def test_no_setting_that_is_a_place_belongs():
    assert (
        not any(map(belongs, PLACES))
        and belongs("lora_rank")
        and belongs("resolution")
        and not belongs("nix")
    )
    with pytest.raises(Refused, match="There are character, "):
        find_preset("nix", Path("nowhere"))
