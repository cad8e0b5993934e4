"""Invariants of a whole run: untouched, one copy, the same run from the same seed, never half a
file.
"""

import csv
import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.base.control import Control
from lora_trainer.base.errors import Refused
from lora_trainer.lora import save
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.settings.config import TrainConfig
from lora_trainer.training import loop
from tests.support.base_models import assert_untouched, state_of


def test_run_writes_the_lora_its_card_and_registers_it(host, settings):
    result = train_lora(TrainConfig.parse({**settings, "trigger_word": "zib"}), host)
    assert (
        result.output_file == host.lora_dir / "mine.safetensors"
        and result.lora_tag == "<lora:mine:0.8>"
        and result.steps == 6
    )
    assert host.registered == [result.output_file] and host.gave_way == 0
    card = json.loads(result.output_file.with_suffix(".json").read_text(encoding="utf-8"))
    assert (
        card["activation text"] == "zib"
        and card["preferred weight"] == 0.8
        and card["sd version"] == "SD1"
    )
    with safe_open(result.output_file, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert (
        metadata["ss_output_name"] == "mine"
        and metadata["ss_network_dim"] == "4"
        and metadata["ss_steps"] == "6"
        and metadata["ss_v2"] == "False"
    )
    assert (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
        in names
        and len(names) == 3 * 12
    )
    assert sorted(path.name for path in host.lora_dir.iterdir()) == [
        "mine.json",
        "mine.png",
        "mine.safetensors",
    ]


@pytest.mark.parametrize("targets", ["attention", "attention+feed-forward", "all"])
def test_base_is_untouched_after_a_run(host, settings, targets):
    before = state_of(host.model.unet)
    train_lora(
        TrainConfig.parse(
            {
                **settings,
                "lora_targets": targets,
                "gradient_checkpointing": True,
                "lora_dropout": 0.1,
            }
        ),
        host,
    )
    assert_untouched(before, host.model.unet)


@pytest.mark.parametrize(
    "stage", ["encode_images", "encode_captions", "predict", "backward", "save", "on_status"]
)
def test_base_is_untouched_after_a_fault(host, settings, stage, monkeypatch):
    before = state_of(host.model.unet)

    def fail(*args, **kwargs):
        raise RuntimeError("injected")

    if stage == "backward":
        monkeypatch.setattr(torch.Tensor, "backward", fail)
    elif stage == "save":
        monkeypatch.setattr(save, "save", fail)
    elif stage != "on_status":
        monkeypatch.setattr(host.model, stage, fail)
    with pytest.raises(RuntimeError, match="injected"):
        train_lora(
            TrainConfig.parse(settings),
            host,
            reporter=ProgressReporter(fail) if stage == "on_status" else None,
        )
    monkeypatch.undo()
    assert_untouched(before, host.model.unet)
    assert list(host.lora_dir.iterdir()) == []


def test_one_copy_of_the_base(host, settings, monkeypatch):
    """While training, every base weight still lives in the storage that it lived in before."""
    storages = {parameter.data_ptr() for parameter in host.model.unet.parameters()}
    seen = []
    original = host.model.predict
    monkeypatch.setattr(
        host.model,
        "predict",
        lambda *args: (
            seen.append({p.data_ptr() for p in host.model.unet.parameters()}),
            original(*args),
        )[1],
    )
    train_lora(TrainConfig.parse(settings), host)
    assert len(seen) == 6 and all(storages <= during for during in seen)


def test_same_seed_same_lora_whatever_the_global_generator_does(host, settings):
    runs = []
    for number, seed in enumerate([7, 7, 8]):
        torch.manual_seed(number)
        options = dict(
            mirror=True, random_crop=True, lora_dropout=0.2, output_name=f"run{number}", seed=seed
        )
        runs.append(
            load_file(train_lora(TrainConfig.parse({**settings, **options}), host).output_file)
        )
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_a_run_leaves_the_global_generator_alone(host, settings):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    train_lora(TrainConfig.parse({**settings, "lora_dropout": 0.2}), host)
    assert torch.equal(torch.randn(3), expected)


def test_gradient_checkpointing_changes_nothing_but_memory(host, settings):
    plain, checkpointed = (
        load_file(
            train_lora(
                TrainConfig.parse(
                    {**settings, "gradient_checkpointing": on, "output_name": f"gc{on}"}
                ),
                host,
            ).output_file
        )
        for on in (False, True)
    )
    assert all(
        torch.allclose(plain[name], checkpointed[name], rtol=1e-4, atol=1e-6) for name in plain
    )


def test_training_lowers_the_loss(host, settings):
    losses = []
    train_lora(
        TrainConfig.parse({**settings, "max_train_steps": 300, "scheduler": "constant"}),
        host,
        reporter=ProgressReporter(
            lambda progress: losses.append(progress.loss) if progress.loss is not None else None
        ),
    )
    assert sum(losses[-100:]) < 0.9 * sum(losses[:100])


def test_stop_keeps_what_was_learned(host, settings):
    control = Control()
    result = train_lora(
        TrainConfig.parse({**settings, "max_train_steps": 100}),
        host,
        control=control,
        reporter=ProgressReporter(lambda progress: control.stop() if progress.step >= 3 else None),
    )
    assert result.stopped and result.steps == 3 and result.output_file.is_file()


def test_preview_replaces_ours_and_keeps_the_users(host, settings, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        host,
        "generate",
        lambda prompt, **options: (
            drawn.append((prompt, options)),
            Image.new("RGB", (8, 8), (len(drawn), 0, 0)),
        )[1],
    )
    for _ in range(2):
        train_lora(TrainConfig.parse({**settings, "overwrite": True}), host)
    prompt, options = drawn[0]
    assert not options.pop(
        "should_stop"
    )()  # the run was not stopped, so the picture is drawn to its end
    assert (prompt, options) == (
        "a circle, number 0 <lora:mine:0.8>",
        dict(seed=42, width=64, height=64),
    )
    assert Image.open(host.lora_dir / "mine.png").getpixel((0, 0)) == (2, 0, 0)
    Image.new("RGB", (8, 8), "blue").save(host.lora_dir / "mine.png")
    train_lora(TrainConfig.parse({**settings, "overwrite": True}), host)
    assert Image.open(host.lora_dir / "mine.png").getpixel((0, 0)) == (0, 0, 255)


def test_a_preview_that_fails_costs_nothing(host, settings, monkeypatch):
    monkeypatch.setattr(
        host, "generate", lambda *args, **options: (_ for _ in ()).throw(RuntimeError("no"))
    )
    assert train_lora(TrainConfig.parse(settings), host).output_file.is_file()


def test_stop_before_the_first_step_writes_nothing(host, settings):
    control = Control()
    control.stop()
    result = train_lora(TrainConfig.parse(settings), host, control=control)
    assert result.stopped and result.output_file is None and list(host.lora_dir.iterdir()) == []


def test_not_finite_stops_with_a_sentence_and_keeps_the_snapshot(host, settings, monkeypatch):
    count = []
    original = host.model.predict

    def broken(*args):
        count.append(1)
        return original(*args) * (float("nan") if len(count) == 5 else 1.0)

    monkeypatch.setattr(host.model, "predict", broken)
    with pytest.raises(Refused, match="loss became nan at step 5.*learning rate"):
        train_lora(TrainConfig.parse({**settings, "save_steps": 2}), host)
    assert sorted(path.name for path in host.lora_dir.glob("*.safetensors")) == [
        "mine-000002.safetensors",
        "mine-000004.safetensors",
        "mine.safetensors",
    ]


def test_overwriting_fails_whole(host, settings, monkeypatch):
    """A run that fails leaves the LoRA that was there."""
    old = train_lora(TrainConfig.parse(settings), host).output_file.read_bytes()
    monkeypatch.setattr(
        loop, "train", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("injected"))
    )
    with pytest.raises(RuntimeError):
        train_lora(TrainConfig.parse({**settings, "overwrite": True}), host)
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old


def test_v_prediction_trains(host, settings):
    host.model.prediction_type = "v_prediction"
    assert train_lora(TrainConfig.parse(settings), host).steps == 6


def test_bf16_on_the_cpu_keeps_the_lora_in_fp32(host, settings):
    result = train_lora(TrainConfig.parse({**settings, "mixed_precision": "bf16"}), host)
    weights = load_file(result.output_file)
    up = weights[
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight"
    ]
    assert up.dtype == torch.float32 and not torch.equal(up, up.bfloat16().float())


def test_metrics_csv_is_whole(host, settings):
    from lora_trainer.jobs.service import TrainingService

    service = TrainingService(host)
    job = service.wait(service.start(settings), timeout=60)
    assert job["state"] == "finished", job["error"]
    with open(host.data_dir / "jobs" / job["id"] / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]


def test_a_mask_that_appears_after_the_plan_is_not_trained_with(host, settings, pictures):
    """What is trained on is what the run's training states know by its hash."""
    config = TrainConfig.parse({**settings, "masked_loss": "files", "overwrite": True})
    Image.new("L", (64, 64), 255).save(pictures / "1-masklabel.png")

    def trained(on_progress):
        return load_file(
            train_lora(config, host, reporter=ProgressReporter(on_progress)).output_file
        )

    def add_mask(progress):
        if progress.message == "Looking at the pictures":
            Image.new("L", (64, 64), 0).save(pictures / "0-masklabel.png")

    expected = trained(lambda progress: None)
    found = trained(add_mask)
    assert (pictures / "0-masklabel.png").exists()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
