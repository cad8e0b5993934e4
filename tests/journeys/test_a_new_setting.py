"""A new setting is one entry in TrainConfig and nothing else: here one is added, and found wherever
settings are.
"""

import argparse
import dataclasses
import sys

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lora_trainer.base.errors import Refused
from lora_trainer.cli import new_config, train
from lora_trainer.cli.run_settings import read_run
from lora_trainer.editor.library import Library
from lora_trainer.interop.presets import OwnPresets
from lora_trainer.jobs.service import TrainingService
from lora_trainer.jobs.settings_service import SettingsReader
from lora_trainer.runs.resume import compare_runs
from lora_trainer.settings import config as config_module
from lora_trainer.settings.config import TrainConfig
from lora_trainer.settings.reference import reference_table
from lora_trainer.settings.setting import OnResume, Setting
from lora_trainer.web import api

GRAIN = Setting(
    0.25,
    "Film grain",
    "How grainy pictures are while training.",
    group="loss",
    minimum=0.0,
    maximum=2.0,
    unit="%",
    kohya=("film_grain_ratio",),
    also=("grain",),
    effective_when=({"noise_offset": True},),
)


def add_setting(monkeypatch, setting):
    """Give every module a TrainConfig that has this setting, `film_grain`, too."""
    longer = dataclasses.make_dataclass(
        "TrainConfig",
        [("film_grain", float, setting.field())],
        bases=(TrainConfig,),
        frozen=True,
    )
    for name, module in list(sys.modules.items()):
        if name.startswith("lora_trainer.") and getattr(module, "TrainConfig", 0) is TrainConfig:
            monkeypatch.setattr(module, "TrainConfig", longer)
    assert config_module.setting_of("film_grain").title == "Film grain"
    return longer


@pytest.fixture
def longer_config(monkeypatch):
    return add_setting(monkeypatch, GRAIN)


def options(*arguments):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(arguments), parser.format_help()


def test_on_the_command_line(longer_config):
    args, help = options("--film-grain", "1.5", "--output-name", "x")
    assert longer_config.parse(read_run(args)).film_grain == 1.5
    assert "How grainy pictures are while training. [0 to 2]" in " ".join(help.split())


def test_in_a_settings_file(longer_config, tmp_path):
    template = new_config.template("x", {})
    assert "# Film grain. How grainy pictures are while training. 0 to 2 %." in template
    (tmp_path / "x.yaml").write_text(template.replace("# film_grain: 0.25", "film_grain: 1"))
    assert longer_config.load(tmp_path / "x.yaml").film_grain == 1.0
    for name in ("film_grain_ratio", "grain"):
        assert longer_config.parse({name: "0.5"}).film_grain == 0.5
    with pytest.raises(Refused, match="Film grain: 3 is out of range. Use 0 to 2."):
        longer_config.parse({"film_grain": 3})
    with pytest.raises(Refused, match="Did you mean 'film_grain'"):
        longer_config.parse({"film_grian": 1})


def test_in_the_reference(longer_config):
    row = next(row for row in reference_table().splitlines() if "`film_grain`" in row)
    assert row == (
        "| `film_grain` | Film grain | `film_grain_ratio`, `grain` | 0.25 | 0 to 2 % |"
        " How grainy pictures are while training. |"
    )


def test_in_the_form_and_the_api(longer_config, host, settings):
    service = TrainingService(host)
    app = FastAPI()
    api.mount(app, service)
    client = TestClient(app)
    form = client.get("/train-lora/v1/settings").json()["settings"]
    entry = next(entry for entry in form if entry["name"] == "film_grain")
    assert (entry["title"], entry["group"], entry["maximum"]) == ("Film grain", "loss", 2.0)
    assert entry["effective_when"] == [{"noise_offset": True}]

    body = client.get("/openapi.json").json()["paths"]["/train-lora/v1/settings/export"]["post"]
    schema = body["requestBody"]["content"]["application/json"]["schema"]["properties"]["config"]
    assert schema["properties"]["film_grain"]["maximum"] == 2.0
    assert schema["properties"]["film_grain_ratio"]["description"] == "Another name of film_grain."

    export = "/train-lora/v1/settings/export"
    answer = client.post(export, json={"config": {**settings, "film_grain": 2}})
    assert answer.status_code == 200 and "film_grain: 2.0" in answer.text
    refused = client.post(export, json={"config": {**settings, "film_grain": 2.1}})
    assert refused.status_code == 422 and refused.json()["error"]["field"] == "film_grain"
    service.library.close()


@pytest.mark.parametrize("on_resume", OnResume)
def test_when_a_run_is_resumed(monkeypatch, tmp_path, settings, on_resume):
    longer = add_setting(monkeypatch, dataclasses.replace(GRAIN, on_resume=on_resume))
    facts = {"version": "1", "torch": "2", "pictures": {}}
    older = {**facts, "config": TrainConfig.parse(settings).resolved()}  # by a version without it
    now = {**facts, "config": longer.parse({**settings, "film_grain": 1}).resolved()}
    changes = compare_runs(older, now)
    if on_resume in (OnResume.FREE, OnResume.BY_EFFECT):
        assert changes == []
    else:
        assert [change.reason for change in changes] == ["film_grain was 0.25 and is 1.0 now"]
        assert changes[0].fatal == (on_resume is OnResume.FATAL)

    service = SettingsReader("standalone", Library(tmp_path / "datasets"), lambda path: None)
    if on_resume is OnResume.FREE:
        assert service.changed(settings, {"film_grain": 1}).film_grain == 1.0
    else:
        with pytest.raises(Refused, match="Film grain cannot change in the middle of a run"):
            service.changed(settings, {"film_grain": 1})


@pytest.mark.parametrize("kept", [True, False])
def test_in_presets_and_a_loras_metadata(monkeypatch, tmp_path, kept):
    setting = dataclasses.replace(GRAIN, kept_in_presets=kept, kept_in_lora=kept)
    longer = add_setting(monkeypatch, setting)
    saved = OwnPresets(tmp_path).save("mine", {"film_grain": 1, "lora_rank": 4})
    assert ("film_grain" in saved["settings"]) == kept
    assert ("film_grain" in config_module.settings_kept_in_lora(longer())) == kept
