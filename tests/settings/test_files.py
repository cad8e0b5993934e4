"""Read settings files: lora-scripts, kohya and what could not be handled."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.settings.config import TrainConfig


def test_lora_scripts_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        """task_type: stable-diffusion
train_data_dir: data/x
metadata_path: data/x/metadata.csv
base_model: model.safetensors
lora_rank: 8
lora_alpha: 4
lora_dropout: 0.1
batch_size: 2
gradient_accumulation_steps: 2
epochs: 3
max_train_steps: null
resolution: 512
learning_rate: 1e-4
optimizer: AdamW
scheduler: cosine
output_dir: out
output_name: mein Stil 猫
overwrite: yes
save_steps: 100
logging_dir: logs
mixed_precision: bf16
gradient_checkpointing: true
seed: 7
""",
        encoding="utf-8",
    )
    config = TrainConfig.load(path)
    assert (
        config.lora_rank,
        config.lora_alpha,
        config.learning_rate,
        config.optimizer,
        config.overwrite,
        config.max_train_steps,
    ) == (8, 4, 1e-4, "adamw", True, 0)
    assert config.output_name == "mein Stil 猫"


def test_kohya_toml_in_sections(tmp_path):
    pytest.importorskip("tomllib" if __import__("sys").version_info >= (3, 11) else "tomli")
    path = tmp_path / "kohya.toml"
    path.write_text(
        "[network]\nnetwork_dim = 32\nnetwork_alpha = 16\n[train]\ntrain_batch_size ="
        ' 2\nmax_train_epochs = 4\nunet_lr = 2e-4\nresolution = "512,768"\nlr_scheduler ='
        ' "constant_with_warmup"\nsave_precision = "float"\n',
        encoding="utf-8",
    )
    config = TrainConfig.load(path)
    assert (
        config.lora_rank,
        config.lora_alpha,
        config.batch_size,
        config.epochs,
        config.learning_rate,
    ) == (32, 16, 2, 4, 2e-4)
    assert (config.resolution, config.scheduler, config.save_precision) == (627, "constant", "fp32")


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_unreadable_files_are_said(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match="settings file"):
        TrainConfig.load(path)


@pytest.mark.parametrize(
    "ending, content, sentence",
    [
        ("yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "alias"),
        ("yaml", "lora_rank: &rank 8\nconv_rank: *rank", "alias"),
        ("yaml", "seed: 0x" + "f" * 9000, "more than 1024 bits"),
        ("yaml", "seed: " + "[" * 40 + "]" * 40, "nested more than 19 levels"),
        ("json", '{"seed": ' + "[" * 900 + "]" * 900 + "}", "nested more than 19 levels"),
        ("json", '{"seed": ' + '{"a": ' * 20 + "1" + "}" * 21, "nested"),
        ("json", '{"seed": [' + "1," * 100_000 + "1]}", "more than 100000 values"),
        ("json", '{"seed": [[' + "1,2],[" * 40_000 + "1]]}", "more than 100000 values"),
    ],
)
def test_files_that_could_not_be_handled_are_refused(tmp_path, ending, content, sentence):
    path = tmp_path / f"x.{ending}"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match=sentence) as caught:
        TrainConfig.load(path)
    assert caught.value.code == "unreadable_config"


def test_anchors_without_an_alias_are_harmless(tmp_path):
    (tmp_path / "x.yaml").write_text("lora_rank: &rank 8", encoding="utf-8")
    assert TrainConfig.load(tmp_path / "x.yaml").lora_rank == 8
