"""Settings files as articles print them, from folder to LoRA with the embedded checkpoint; what
they cannot do is said with what to change.
"""

import csv
import shutil

import pytest
import safetensors
import yaml

from lora_trainer.cli import main
from lora_trainer.demo.checkpoint import write_checkpoint
from lora_trainer.demo.concept import write_dataset
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.runs.base_models import nearby_checkpoints
from lora_trainer.settings.config import TrainConfig

pytest.importorskip("diffusers", reason="a WebUI's packages lack what the command line trains with")
COMMON = "batch_size: 4\nlearning_rate: 2e-4\nsave_steps: 100\n"
PRINTED = {  # name: (the file but for COMMON, rank, alpha, epochs)
    "my_style": (
        (
            "train_data_dir: ./data/style_train\nmetadata_path:"
            " ./data/style_train/metadata.csv\nbase_model:"
            " ./models/Stable-diffusion/v1-5-pruned.safetensors\nlora_rank: 8\nlora_alpha:"
            " 16\nlora_dropout: 0.1\nepochs: 10\noptimizer: AdamW\nscheduler: cosine\noutput_dir:"
            " ./output/my_style_lora\nlogging_dir: ./output/my_style_lora/logs\n"
        ),
        8,
        16,
        10,
    ),
    "cyberpunk": (
        (
            "train_data_dir: ./data/cyberpunk_train\nmetadata_path:"
            " ./data/cyberpunk_train/metadata.csv\nbase_model:"
            " ./models/Stable-diffusion/v1-5-pruned.safetensors\nlora_rank: 16\nepochs:"
            " 15\noutput_dir: ./output/cyberpunk_lora\n"
        ),
        16,
        16,
        15,
    ),
    "cyberpunk_commented": (
        (
            'train_data_dir: "./data/cyberpunk_train"\nmetadata_path:'
            ' "./data/cyberpunk_train/metadata.csv"\nbase_model:'
            ' "./models/v1-5-pruned.safetensors"\nlora_rank: 16 # 风格复杂,适当提高秩\nepochs: 15 #'
            ' 数据较少,增加轮次\noutput_dir: "./output/cyberpunk_lora"\n'
        ),
        16,
        16,
        15,
    ),
    "watercolor": (
        (
            'train_data_dir: "./data/watercolor_train"\nmetadata_path:'
            ' "./data/watercolor_train/metadata.csv"\nbase_model:'
            ' "./models/Stable-diffusion/v1-5-pruned.safetensors"\nlora_rank: 8\nalpha: 16 # alpha'
            ' ≈ 2×rank 是常见经验\nepochs: 15\noutput_dir: "./output/watercolor_lora"\n'
        ),
        8,
        16,
        15,
    ),
    "style_quoted": (
        (
            'train_data_dir: "./data/style_train"\nmetadata_path:'
            ' "./data/style_train/metadata.csv"\nbase_model:'
            ' "./models/Stable-diffusion/v1-5-pruned.safetensors"\nlora_rank: 8\nepochs:'
            ' 10\noutput_dir: "./output/my_style_lora"\n'
        ),
        8,
        8,
        10,
    ),
}
MEDICAL = (
    'base_model: "./models/llama-2-7b-chat.ggmlv3.q4_0.bin"\ntask_type:'
    ' "text-generation"\ntrain_data_dir: "./data/medical_qa"\n'
)
PICTURES = 8


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A folder with the checkpoint of the demo, and pictures with a metadata.csv as auto_label
    writes it.
    """
    folder = tmp_path_factory.mktemp("embedded")
    write_checkpoint(folder / "models", "v1-5-pruned")
    pictures = write_dataset(folder / "pictures", PICTURES)
    with open(pictures / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "prompt"])
        for caption in sorted(pictures.glob("*.txt")):
            writer.writerow(
                [f"{caption.stem}.png", f"{caption.read_text(encoding='utf-8').strip()}, a drawing"]
            )
            caption.unlink()
    return folder


@pytest.fixture
def there(embedded, tmp_path, monkeypatch):
    """Lay out a project as the articles do, and return a function that writes a settings file into
    it and runs it.
    """
    monkeypatch.chdir(tmp_path)

    def run(name, text, *options, folder=tmp_path, model="models/Stable-diffusion"):
        values = yaml.safe_load(text)
        shutil.copytree(embedded / "models", folder / model, dirs_exist_ok=True)
        shutil.copytree(
            embedded / "pictures", folder / values["train_data_dir"], dirs_exist_ok=True
        )
        (folder / "configs").mkdir(exist_ok=True)
        (folder / "configs" / f"{name}.yaml").write_text(text, encoding="utf-8")
        return main.main(
            ["train", "--config", str(folder / "configs" / f"{name}.yaml"), *options],
            make_host=make_host,
        )

    return run


def make_host(**arguments):
    return StandaloneHost(**arguments, device="cpu")


def alphas(path):
    with safetensors.safe_open(path, "pt") as file:
        found = {
            (
                tuple(file.get_tensor(key.replace(".alpha", ".lora_down.weight")).shape)[0],
                float(file.get_tensor(key)),
            )
            for key in file.keys()  # noqa: SIM118 - no mapping
            if key.endswith(".alpha")
        }
        return found, file.metadata()


@pytest.mark.parametrize("name", PRINTED)
def test_a_printed_file_makes_its_lora_as_it_stands(there, tmp_path, capsys, name):
    text, rank, alpha, epochs = PRINTED[name]
    model = "models" if name == "cyberpunk_commented" else "models/Stable-diffusion"
    status = there(name, text + COMMON, model=model)
    said = capsys.readouterr()
    assert status == 0, said.err
    made = yaml.safe_load(text)["output_dir"].removeprefix("./output/")
    lora = tmp_path / "output" / made / f"{made}.safetensors"
    found, metadata = alphas(lora)
    assert (
        found == {(rank, alpha)}
        and metadata["ss_network_alpha"] == f"{alpha:g}"
        and metadata["ss_output_name"] == made
    )
    assert (
        metadata["ss_resolution"] == "(64, 64)"
    )  # not said in the file: that of the checkpoint's pictures
    assert (
        metadata["ss_num_epochs"] == str(epochs)
        and metadata["ss_steps"] == str(epochs * PICTURES // 4)
        and f"called {made}" in said.out
    )
    assert "a drawing" in metadata["ss_tag_frequency"] and f"<lora:{made}:0.8>" in said.out


def test_places_are_found_beside_the_settings_file_too(there, tmp_path, monkeypatch, capsys):
    project = tmp_path / "project"
    monkeypatch.chdir(tmp_path)
    assert (
        there(
            "my_style",
            PRINTED["style_quoted"][0] + COMMON,
            "--max-train-steps",
            "2",
            "--preview",
            "off",
            folder=project,
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "note: train_data_dir: ./data/style_train is not in this folder;"
        f" {project / 'data' / 'style_train'} is taken" in said
    )
    assert (tmp_path / "output" / "my_style_lora" / "my_style_lora.safetensors").is_file() and not (
        project / "output"
    ).exists()


def test_a_name_without_an_output_folder_is_that_of_the_file(there, tmp_path, capsys):
    text = PRINTED["style_quoted"][0].replace('output_dir: "./output/my_style_lora"\n', "")
    assert there("my_flowers", text, "--max-train-steps", "2", "--preview", "off") == 0
    assert (
        tmp_path / "output" / "my_flowers.safetensors"
    ).is_file() and "called my_flowers" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(there, tmp_path, capsys):
    there("x", PRINTED["my_style"][0], "--max-train-steps", "1", "--preview", "off")
    capsys.readouterr()
    (tmp_path / "models" / "Stable-diffusion" / "v1-5-pruned.safetensors").rename(
        tmp_path / "models" / "Stable-diffusion" / "v1-5-pruned-emaonly.safetensors"
    )
    (tmp_path / "models" / "other.safetensors").write_bytes(b"x")
    assert (
        main.main(
            ["train", "--config", "configs/x.yaml", "--output-name", "y"], make_host=make_host
        )
        == 1
    )
    assert (
        "There is no checkpoint models/Stable-diffusion/v1-5-pruned.safetensors. There are:"
        " models/Stable-diffusion/v1-5-pruned-emaonly.safetensors, models/other.safetensors."
        in capsys.readouterr().err
    )
    assert [
        path.name for path in nearby_checkpoints(tmp_path / "models" / "other2.safetensors")
    ] == ["other.safetensors", "v1-5-pruned-emaonly.safetensors"]


def test_a_language_model_is_refused_with_what_it_will_take(there, tmp_path, capsys):
    assert there("medical_qa", MEDICAL) == 1
    error = capsys.readouterr().err
    assert all(
        words in error
        for words in (
            "text-generation",
            "not there yet",
            "Hugging Face hub",
            "folder",
            "llama-2-7b-chat.ggmlv3.q4_0.bin",
            "GGML",
        )
    )
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "spelling, name, value",
    [
        ("alpha", "lora_alpha", 16),
        ("rank", "lora_rank", 8),
        ("network_rank", "lora_rank", 8),
        ("dim", "lora_rank", 8),
        ("network_dim", "lora_rank", 8),
        ("lr", "learning_rate", 2e-4),
        ("num_epochs", "epochs", 3),
        ("save_every", "save_steps", 100),
        ("data_dir", "train_data_dir", "x"),
    ],
)
def test_other_spellings(spelling, name, value):
    assert getattr(TrainConfig.parse({spelling: value}), name) == value
