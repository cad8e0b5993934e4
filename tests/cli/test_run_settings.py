"""Settings of a run from a preset, a file and options, each over the one before."""

import argparse
import json

import pytest

from lora_trainer.base.contracts import ModelStatus
from lora_trainer.base.errors import Refused
from lora_trainer.cli.run_settings import at_model_size, data_dir_of, parsed, read_run
from lora_trainer.cli.train import add_arguments
from lora_trainer.interop.presets import OwnPresets, presets_folder

KOHYA = {"LoRA_type": "Standard", "network_dim": 8, "output_name": "theirs", "train_batch_size": 2}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read the options of `train`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def read(*options):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return read_run(parser.parse_args(list(options)))

    return read


def test_an_option_goes_before_the_file_by_whichever_name(read, tmp_path):
    (tmp_path / "run.yaml").write_text("network_dim: 8\nlora_alpha: 2\noutput_name: mine\n")
    values = read("--config", "run.yaml", "--lora-rank", "4")
    assert values == {"lora_rank": "4", "lora_alpha": 2, "output_name": "mine"}
    assert parsed(values, None).lora_rank == 4


def test_a_preset_comes_last(read, tmp_path):
    OwnPresets(presets_folder(data_dir_of("loras"))).save(
        "portrait", {"lora_rank": 16, "lora_alpha": 8.0, "epochs": 3}
    )
    (tmp_path / "run.yaml").write_text("output_dir: loras\nlora_alpha: 2\nmax_train_epochs: 5\n")
    values = read("--config", "run.yaml", "--preset", "portrait", "--lora-rank", "4")
    config = parsed(values, tmp_path / "run.yaml")
    assert (config.lora_rank, config.lora_alpha, config.epochs) == (4, 2.0, 5)


def test_a_lora_without_a_name_gets_one_and_it_is_said(read, tmp_path, capsys):
    (tmp_path / "zib.yaml").write_text("lora_rank: 4\n")
    assert read("--config", "zib.yaml")["output_name"] == "zib"
    assert "note: no output_name is given; the LoRA is called zib" in capsys.readouterr().out
    assert read("--config", "zib.yaml", "--output-name", "mine")["output_name"] == "mine"
    assert not capsys.readouterr().out


def test_places_are_found_beside_the_file_and_that_is_said(read, tmp_path, capsys):
    (tmp_path / "runs" / "pictures").mkdir(parents=True)
    (tmp_path / "reg").mkdir()
    (tmp_path / "runs" / "loras").mkdir()
    file = tmp_path / "runs" / "config" / "run.yaml"
    file.parent.mkdir()
    file.write_text(
        "train_data_dir: pictures\nreg_data_dir: reg\noutput_dir: loras\noutput_name: mine\n"
    )
    values = read("--config", str(file))
    assert values["train_data_dir"] == str(tmp_path / "runs" / "pictures")
    assert values["reg_data_dir"] == "reg", "it is where the path says"
    assert values["output_dir"] == "loras", "a place that is written to is not looked for"
    assert capsys.readouterr().out.count("note:") == 1


def test_another_trainers_file_is_refused_with_the_command_that_reads_it(tmp_path):
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(KOHYA))
    with pytest.raises(Refused, match="import-settings .*theirs.json --into theirs-run.yaml"):
        parsed({"LoRA_type": "Standard"}, file)
    with pytest.raises(Refused) as caught:
        parsed({"lora_rnak": 4}, None)
    assert "import-settings" not in caught.value.message and caught.value.code == "unknown_setting"


@pytest.mark.parametrize(
    "given, size_px, resolution", [({}, 768, 768), ({}, 0, None), ({"resolution": 640}, 768, 640)]
)
def test_the_checkpoints_own_size_fills_in_a_resolution(host, given, size_px, resolution):
    host.status = ModelStatus(True, checkpoint="tiny", family="sd2", size_px=size_px)
    assert at_model_size(given, host)["resolution"] == (resolution or host.default_size_px)


def test_without_a_model_no_resolution_is_filled_in(host):
    host.status = ModelStatus(False, "none is loaded")
    assert at_model_size({"lora_rank": 4}, host) == {"lora_rank": 4}
