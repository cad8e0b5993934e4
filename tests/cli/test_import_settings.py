"""`import-settings` prints what was taken over and what was not, and writes a file that `train`
reads.
"""

import pytest

from lora_trainer.cli.main import main
from lora_trainer.settings.config import TrainConfig

KOHYA = (
    "network_dim = 24\nnetwork_alpha = 12\nunet_lr = 0.0003\nxformers = true\nnetwork_module ="
    ' "networks.lora"\noutput_name = "猫"\n'
)


@pytest.fixture
def theirs(tmp_path):
    path = tmp_path / "cat.toml"
    path.write_text(KOHYA, encoding="utf-8")
    return path


def run(*arguments):
    return main(["import-settings", *map(str, arguments)], make_host=None)


def test_both_lists_are_printed(theirs, capsys):
    assert run(theirs) == 0
    taken, left = capsys.readouterr().out.split("left out:")
    assert (
        "lora_rank: 24" in taken and "learning_rate: 0.0003" in taken and "xformers: True (" in left
    )


def test_the_file_that_is_written_is_a_run(theirs, tmp_path, capsys):
    into = tmp_path / "run.yaml"
    assert run(theirs, "--into", into) == 0 and str(into) in capsys.readouterr().out
    config = TrainConfig.load(into)
    assert (config.lora_rank, config.lora_alpha, config.learning_rate, config.output_name) == (
        24,
        12,
        0.0003,
        "猫",
    )
    into.write_text("precious", encoding="utf-8")
    assert (
        run(theirs, "--into", into) == 1
        and "exists already" in capsys.readouterr().err
        and into.read_text(encoding="utf-8") == "precious"
    )
    assert run(theirs, "--into", into, "--overwrite") == 0 and TrainConfig.load(into) == config


@pytest.mark.parametrize("name", ["nothing.toml", "model.ckpt"])
def test_what_cannot_be_read_is_an_error(tmp_path, name, capsys):
    assert run(tmp_path / name) == 1
    assert capsys.readouterr().err.startswith("error: ")
