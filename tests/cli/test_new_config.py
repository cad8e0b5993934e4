"""`new-config` writes a settings file that is valid as it stands, says what every setting does, and
is never written over another.
"""

import pytest
import yaml

from lora_trainer.cli import main
from lora_trainer.interop.presets import OwnPresets, package_presets
from lora_trainer.settings.config import GROUPS, TrainConfig, all_settings


def new_config(*arguments):
    return main.main(["new-config", *map(str, arguments)], make_host=None)


def test_it_is_valid_as_it_stands_and_names_every_setting(tmp_path, capsys):
    path = tmp_path / "configs" / "my_char.yaml"
    assert new_config(path) == 0 and f"train --config {path}" in capsys.readouterr().out
    text, config = path.read_text(encoding="utf-8"), TrainConfig.load(path)
    assert (config.output_name, config.lora_rank, config.epochs, config.alpha) == (
        "my_char",
        16,
        10,
        16,
    )
    given = yaml.safe_load(text).keys()
    assert {"train_data_dir", "base_model", "learning_rate", "lora_rank"} <= given and not {
        "resolution",
        "lora_alpha",
        "mirror",
    } & given
    for setting in all_settings():
        if setting.name != "task_type":
            assert f"\n{setting.name}: " in text or f"\n# {setting.name}: " in text, setting.name
            assert setting.help.split(".")[0][:40] in text.replace("\n# ", " ")
    assert (
        all(f"# --- {title} " in text for title in GROUPS.values())
        and max(map(len, text.splitlines())) <= 100
    )


def test_every_line_can_be_set_as_it_is(tmp_path):
    """Taking the # away gives the default, whatever the setting is."""
    new_config(tmp_path / "x.yaml")
    lines = (tmp_path / "x.yaml").read_text(encoding="utf-8").splitlines()
    names = {setting.name for setting in all_settings()}
    values = yaml.safe_load(
        "\n".join(
            line.removeprefix("# ")
            for line in lines
            if line.removeprefix("# ").split(":")[0] in names
        )
    )
    changed = {"train_data_dir", "base_model", "output_name", "task_type"}
    assert {**TrainConfig.parse(values).to_dict(), **dict.fromkeys(changed)} == {
        **TrainConfig().to_dict(),
        **dict.fromkeys(changed),
    }


@pytest.mark.parametrize("preset", [preset["name"] for preset in package_presets()])
def test_with_a_preset(tmp_path, preset):
    assert new_config(tmp_path / "x.yaml", "--preset", preset) == 0
    settings = next(entry["settings"] for entry in package_presets() if entry["name"] == preset)
    assert (
        yaml.safe_load((tmp_path / "x.yaml").read_text(encoding="utf-8")).items()
        >= settings.items()
    )


def test_with_a_preset_of_ones_own(tmp_path):
    OwnPresets(tmp_path / "data" / "presets").save("水墨 🖌", {"lora_rank": 24, "mirror": True})
    assert (
        new_config(tmp_path / "x.yaml", "--preset", "水墨 🖌", "--data-dir", tmp_path / "data") == 0
    )
    assert (config := TrainConfig.load(tmp_path / "x.yaml")).lora_rank == 24 and config.mirror


def test_what_is_there_stays(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("mine: 1", encoding="utf-8")
    assert new_config(tmp_path / "x.yaml") == 1 and "exists already" in capsys.readouterr().err
    assert (tmp_path / "x.yaml").read_text(encoding="utf-8") == "mine: 1"
    assert new_config(tmp_path / "x.yaml", "--overwrite") == 0 and "mine" not in (
        tmp_path / "x.yaml"
    ).read_text(encoding="utf-8")
    assert (
        new_config(tmp_path / "y.toml") == 1
        and new_config(tmp_path / "z.yaml", "--preset", "nix") == 1
    )
    assert not (tmp_path / "y.toml").exists() and not (tmp_path / "z.yaml").exists()
