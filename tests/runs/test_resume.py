"""Invariant 5: a run that was killed and goes on ends with the very weights of one that was not;
and what keeps a run from going on.
"""

import contextlib
import os

import pytest
import torch
from PIL import Image

from lora_trainer.base.control import Control
from lora_trainer.base.errors import Refused
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.runs.resume import check_resume, state_folder, state_step
from lora_trainer.settings.config import TrainConfig
from lora_trainer.training import state_files
from tests.support.stopped_runs import assert_same, run_until, weights_of


@pytest.mark.parametrize(
    "changes",
    [
        {"loraplus_lr_ratio": 4},
        {"lora_type": "lokr", "ema_decay": 0.9},
        {"lora_type": "loha", "lora_targets": "all", "optimizer": "adafactor"},
    ],
    ids=lambda changes: changes.get("lora_type", "lora"),
)
def test_a_dora_in_several_sizes_with_drawn_captions_is_the_same_run(
    host, longer, folder, pictures, changes
):
    (pictures / "0.txt").rename(pictures / "0.caption")
    (pictures / "1.txt").write_text(
        "a {red|blue} circle\na disc, {small|{very |}large}", encoding="utf-8"
    )
    config = TrainConfig.parse(
        {
            **longer,
            "use_dora": True,
            "train_text_encoder": True,
            "extra_resolutions": "96",
            "caption_lines": "alternatives",
            "caption_wildcards": True,
            "block_learning_rates": "MID=0.5, IN01=2",
            "save_every_n_epochs": 1,
            "keep_snapshots": 1,
            "shuffle_caption": True,
            "trigger_word": "zib",
            **changes,
        }
    )
    train_lora(config.replace(output_name="whole"), host)
    run_until(7, config, host, folder)
    assert train_lora(config, host, folder=folder, resume=True).steps == 12
    assert_same(weights_of(host), weights_of(host, "whole"))
    assert sorted(path.stem for path in host.lora_dir.glob("mine-*.safetensors")) == ["mine-000008"]


@pytest.mark.parametrize("killed_at", [1, 5, 11, 12])
def test_same_weights_as_without_the_interruption(host, longer, folder, killed_at):
    config = TrainConfig.parse(longer)
    train_lora(config.replace(output_name="whole"), host)
    run_until(killed_at, config, host, folder)
    assert state_step(folder) == killed_at
    result = train_lora(config, host, folder=folder, resume=True)
    assert result.steps == 12 and not result.stopped
    assert_same(weights_of(host, "whole"), weights_of(host))


RICH = dict(
    train_text_encoder=True,
    shuffle_caption=True,
    caption_dropout_rate=0.2,
    caption_tag_dropout_rate=0.2,
    ema_decay=0.9,
    lora_dropout=0.1,
    rank_dropout=0.1,
    module_dropout=0.1,
    mirror=True,
    color_jitter=0.1,
    noise_offset=0.05,
    noise_offset_random=True,
    multires_noise_iterations=3,
    input_perturbation=0.1,
    timestep_sampling="logit_normal",
    min_snr_gamma=5,
    loss_type="huber",
    scale_weight_norms=1.0,
    validation_split=0.3,
    rslora=True,
    scheduler="one_cycle",
    gradient_accumulation_steps=2,
    caption_lines="alternatives",
    caption_wildcards=True,
)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_a_run_with_everything_on_goes_on_as_without_the_interruption(
    host, longer, folder, pictures, kind
):
    (pictures / "2.txt").write_text(
        "a circle, {red|green|blue}\nanother, of number 2\nround", encoding="utf-8"
    )
    config = TrainConfig.parse({**longer, **RICH, "lora_type": kind})
    train_lora(config.replace(output_name="whole"), host)
    run_until(5, config, host, folder)
    train_lora(config, host, folder=folder, resume=True)
    assert_same(weights_of(host, "whole"), weights_of(host))
    assert any(name.startswith("lora_te_") for name in weights_of(host))


@pytest.mark.parametrize(
    "changes",
    [
        dict(use_dora=True),
        dict(use_dora=True, lora_type="lokr"),
        dict(
            use_dora=True,
            loraplus_lr_ratio=16,
            loraplus_text_encoder_lr_ratio=4,
            block_learning_rates="IN01=0.5",
        ),
    ],
)
def test_doras_and_rates_of_their_own_go_on_as_without_the_interruption(
    host, longer, folder, changes
):
    config = TrainConfig.parse({**longer, **RICH, **changes})
    train_lora(config.replace(output_name="whole"), host)
    run_until(5, config, host, folder)
    train_lora(config, host, folder=folder, resume=True)
    assert_same(weights_of(host, "whole"), weights_of(host))
    assert any(name.endswith("dora_scale") for name in weights_of(host))


@pytest.mark.parametrize(
    "changed",
    [dict(use_dora=True), dict(loraplus_lr_ratio=4), dict(block_learning_rates="IN01=0.5")],
)
def test_what_makes_other_groups_of_weights_is_refused(host, longer, folder, changed):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    with pytest.raises(Refused, match=f"{next(iter(changed))} was") as refusal:
        train_lora(config.replace(**changed), host, folder=folder, resume=True, anyway=True)
    assert not refusal.value.details["anyway_possible"]


def test_a_state_of_before_a_setting_was_there_goes_on(host, longer, folder, monkeypatch):
    """What an earlier version did not ask was as it is by default."""
    config, whole = TrainConfig.parse(longer), TrainConfig.to_dict
    monkeypatch.setattr(
        TrainConfig,
        "to_dict",
        lambda self: {
            name: value
            for name, value in whole(self).items()
            if name not in ("use_dora", "loraplus_lr_ratio")
        },
    )
    run_until(4, config, host, folder)
    monkeypatch.undo()
    assert train_lora(config, host, folder=folder, resume=True).steps == 12


def test_dropout_that_was_changed_counts(host, longer, folder):
    config = TrainConfig.parse(longer)
    train_lora(config.replace(output_name="whole"), host)
    run_until(5, config, host, folder)
    train_lora(config.replace(lora_dropout=0.5), host, folder=folder, resume=True, anyway=True)
    whole, changed = weights_of(host, "whole"), weights_of(host)
    assert any(not torch.equal(whole[name], changed[name]) for name in whole)


def test_another_lora_to_begin_from_is_said_not_to_count(host, longer, folder):
    config = TrainConfig.parse(longer)
    train_lora(config.replace(output_name="other"), host)
    run_until(4, config, host, folder)
    with pytest.raises(Refused, match="it began from new layers, and other would not be used"):
        train_lora(config.replace(init_lora="other"), host, folder=folder, resume=True)


def test_what_the_model_is_taken_for_is_compared_not_how_it_was_said(host, longer, folder):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    with pytest.raises(
        Refused, match="taken to predict epsilon and is taken to predict v_prediction"
    ) as refusal:
        train_lora(
            config.replace(prediction_type="v_prediction"),
            host,
            folder=folder,
            resume=True,
            anyway=True,
        )
    assert not refusal.value.details["anyway_possible"]
    assert (
        train_lora(
            config.replace(prediction_type="epsilon"), host, folder=folder, resume=True
        ).steps
        == 12
    )


def test_a_changed_mask_is_refused(host, longer, folder, pictures):
    Image.new("L", (64, 64), 255).save(pictures / "0-masklabel.png")
    config = TrainConfig.parse({**longer, "masked_loss": "files"})
    run_until(4, config, host, folder)
    Image.new("L", (64, 64), 9).save(pictures / "0-masklabel.png")
    with pytest.raises(Refused, match="the mask of 0.png changed"):
        train_lora(config, host, folder=folder, resume=True)


def test_damaged_progress_is_not_begun_anew_in_silence(host, longer, folder):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    for path in state_folder(folder).glob("step-*"):
        path.write_bytes(b"nothing")
    with pytest.raises(Refused, match="its progress on disk is damaged") as refusal:
        check_resume(config, host.lora_dir, folder)
    assert refusal.value.details["anyway_possible"]
    with pytest.raises(Refused, match="damaged"):
        train_lora(config, host, folder=folder, resume=True)
    assert (
        list(state_folder(folder).glob("*.damaged"))
        and train_lora(config, host, folder=folder, resume=True, anyway=True).steps == 12
    )


def test_another_precision_of_the_same_file_is_told_and_of_another_file_refused(
    host, longer, folder
):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    host.model.fingerprint, host.model.dtype = "other numbers", torch.float16
    with pytest.raises(
        Refused, match="precision was torch.float32 and is torch.float16"
    ) as refusal:
        train_lora(config, host, folder=folder, resume=True)
    assert refusal.value.details["anyway_possible"]
    host.model.sha256 = "2" * 64
    with pytest.raises(Refused, match="has other weights") as refusal:
        train_lora(config, host, folder=folder, resume=True, anyway=True)
    assert not refusal.value.details["anyway_possible"]


def test_what_trouble_forced_stays_and_what_was_chosen_may_change(
    host, longer, folder, monkeypatch
):
    """Gradient checkpointing that memory forced is on after the resume; one that the user chose can
    be switched off.
    """
    on = []
    monkeypatch.setattr(
        "lora_trainer.training.precision.gradient_checkpointing",
        lambda unet, enabled: (on.append(enabled), contextlib.nullcontext())[1],
    )
    config = TrainConfig.parse({**longer, "gradient_checkpointing": True})
    run_until(4, config, host, folder)
    run_until(6, config.replace(gradient_checkpointing=False), host, folder, resume=True)
    assert on == [True, False]
    predict, calls = host.model.predict, []

    def short_of_memory(*args):
        calls.append(1)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return predict(*args)

    monkeypatch.setattr(host.model, "predict", short_of_memory)
    run_until(8, config.replace(gradient_checkpointing=False), host, folder, resume=True)
    train_lora(config.replace(gradient_checkpointing=False), host, folder=folder, resume=True)
    assert on == [True, False, False, True, True]


def test_the_lora_that_a_run_began_from_need_not_be_there_any_more(host, longer, folder):
    base = train_lora(TrainConfig.parse({**longer, "output_name": "base"}), host).output_file
    config = TrainConfig.parse({**longer, "init_lora": "base"})
    run_until(4, config, host, folder)
    base.unlink()
    assert train_lora(config, host, folder=folder, resume=True).steps == 12


def test_names_that_are_not_unicode_can_be_kept(host, longer, folder, pictures):
    try:
        (pictures / "0.png").rename(pictures / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system wants Unicode names")
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    assert train_lora(config, host, folder=folder, resume=True).steps == 12


def test_without_a_state_it_begins_anew(host, longer, folder):
    result = train_lora(TrainConfig.parse(longer), host, folder=folder, resume=True)
    assert result.steps == 12


def test_stop_and_go_on(host, longer, folder):
    config, control = TrainConfig.parse(longer), Control()
    train_lora(config.replace(output_name="whole"), host)
    result = train_lora(
        config,
        host,
        folder=folder,
        control=control,
        reporter=ProgressReporter(lambda progress: control.stop() if progress.step == 4 else None),
    )
    assert result.stopped and result.output_file.is_file() and state_step(folder) == 4
    result = train_lora(
        config, host, folder=folder, resume=True
    )  # its own LoRA is in nobody's way, without `overwrite`
    assert not result.stopped
    assert_same(weights_of(host, "whole"), weights_of(host))


def test_another_runs_lora_is_still_in_the_way(host, longer, folder):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    train_lora(config, host)
    with pytest.raises(Refused, match="exists already"):
        train_lora(config, host, folder=folder, resume=True)


def test_more_epochs_go_on_from_the_end(host, settings, folder):
    config = TrainConfig.parse({**settings, "scheduler": "constant"})
    train_lora(config, host, folder=folder)
    result = train_lora(config.replace(max_train_steps=9), host, folder=folder, resume=True)
    assert result.steps == 9
    train_lora(config.replace(max_train_steps=9, output_name="whole"), host)
    assert_same(weights_of(host, "whole"), weights_of(host))


@pytest.mark.parametrize(
    "change, reason",
    [
        ("caption", "the caption of 3.png changed"),
        ("picture", "the picture of 2.png changed"),
        ("new", "9.png is new"),
        ("missing", "0.png is missing"),
    ],
)
def test_changed_pictures_are_refused_with_the_reason(
    host, longer, folder, pictures, change, reason
):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    if change == "caption":
        (pictures / "3.txt").write_text("something else", encoding="utf-8")
    elif change == "missing":
        (pictures / "0.png").unlink()
    else:
        Image.new("RGB", (128, 64), "red").save(
            pictures / ("9.png" if change == "new" else "2.png")
        )
    with pytest.raises(Refused, match=reason) as refusal:
        check_resume(config, host.lora_dir, folder)
    assert (
        refusal.value.code == "cannot_resume"
        and refusal.value.details["anyway_possible"]
        and reason in refusal.value.details["reasons"]
    )
    with pytest.raises(Refused, match=reason):
        train_lora(config, host, folder=folder, resume=True)
    result = train_lora(config, host, folder=folder, resume=True, anyway=True)
    assert result.steps == 12 and any(reason in remark for remark in result.warnings)


@pytest.mark.parametrize(
    "change", [dict(lora_rank=8), dict(lora_alpha=1), dict(lora_targets="all")]
)
def test_other_layers_cannot_go_on(host, longer, folder, change):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    for anyway in (False, True):
        with pytest.raises(Refused, match=next(iter(change))) as refusal:
            train_lora(config.replace(**change), host, folder=folder, resume=True, anyway=anyway)
        assert not refusal.value.details["anyway_possible"]


def test_another_base_model_cannot_go_on(host, longer, folder):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    host.model.sha256, host.model.name = "1" * 64, "other"
    with pytest.raises(Refused, match="was trained on tiny, and other is loaded"):
        train_lora(config, host, folder=folder, resume=True, anyway=True)
    host.model.sha256 = "0" * 64
    host.model.encoding_key = lambda: "another VAE"
    with pytest.raises(
        Refused,
        match="VAE, clip skip or reading of captions was clip skip 1 and is another VAE now",
    ):
        train_lora(config, host, folder=folder, resume=True)


def test_settings_that_only_steer_may_change(host, longer, folder):
    config = TrainConfig.parse(longer)
    run_until(4, config, host, folder)
    assert (
        check_resume(
            config.replace(learning_rate=1e-5, epochs=50, scheduler="linear", save_steps=3),
            host.lora_dir,
            folder,
        )
        == []
    )
    with pytest.raises(Refused, match="resolution was 64 and is 128 now"):
        check_resume(config.replace(resolution=128), host.lora_dir, folder)


def test_the_same_run_in_several_resolutions(host, longer, folder, pictures):
    Image.new("L", (64, 64), 100).save(pictures / "1-masklabel.png")
    config = TrainConfig.parse(
        {
            **longer,
            "extra_resolutions": "96, 128",
            "validation_split": 0.2,
            "masked_loss": "files",
            "max_train_steps": 16,
        }
    )
    train_lora(config.replace(output_name="whole"), host)
    run_until(9, config, host, folder)
    assert train_lora(config, host, folder=folder, resume=True).steps == 16
    assert_same(weights_of(host, "whole"), weights_of(host))
    with pytest.raises(Refused, match=r"\.png in 128 px, .*missing"):
        check_resume(config.replace(extra_resolutions="96"), host.lora_dir, folder)


def test_a_state_from_before_there_were_several_resolutions_goes_on(
    host, longer, folder, monkeypatch
):
    config = TrainConfig.parse(longer)
    train_lora(config.replace(output_name="whole"), host)
    later = {"extra_resolutions", "save_every_n_epochs", "keep_snapshots", "negative_text"}
    to_dict = TrainConfig.to_dict
    monkeypatch.setattr(
        TrainConfig,
        "to_dict",
        lambda config: {
            name: value for name, value in to_dict(config).items() if name not in later
        },
    )
    run_until(5, config, host, folder)
    monkeypatch.undo()
    assert state_files.latest_facts(state_folder(folder))["config"].keys() & later == set()
    assert check_resume(config, host.lora_dir, folder) == []
    train_lora(config, host, folder=folder, resume=True)
    assert_same(weights_of(host, "whole"), weights_of(host))
    with pytest.raises(Refused, match=r"in 96 px .*new"):
        check_resume(config.replace(extra_resolutions="96"), host.lora_dir, folder)
