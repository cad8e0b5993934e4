"""No setting is without effect: each one changed changes what is learned, or is named here with the
test that shows what it does.
"""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from lora_trainer.runs.pipeline import train_lora
from lora_trainer.settings.config import TrainConfig
from tests.conftest import SMALL, TinyHost, TinyModel, draw_pictures

BASE = dict(max_train_steps=3, train_text_encoder=True, text_encoder_lr=1e-2, preview=False)
LEARNED = {  # setting: (another value, what else must be set, on both sides, for it to matter)
    "trigger_word": ("zib", {}),
    "resolution": (96, {}),
    "extra_resolutions": ("96", {}),
    "epochs": (2, dict(max_train_steps=0, epochs=1)),
    "max_train_steps": (4, {}),
    "batch_size": (1, {}),
    "learning_rate": (2e-2, {}),
    "lora_rank": (2, {}),
    "lora_alpha": (2.0, {}),
    "repeats": (2, {}),
    "enable_bucket": (False, {}),
    "bucket_step": (64, {}),
    "bucket_min": (64, dict(bucket_step=32)),
    "bucket_max": (64, {}),
    "bucket_no_upscale": (True, dict(resolution=256)),
    "mirror": (True, {}),
    "random_crop": (True, dict(enable_bucket=False)),
    "color_jitter": (0.3, {}),
    "masked_loss": ("alpha", {}),
    "masked_loss_floor": (0.5, dict(masked_loss="alpha")),
    "prior_loss_weight": (0.1, dict(reg_data_dir="{others}")),
    "validation_split": (0.3, {}),
    "shuffle_caption": (True, {}),
    "keep_tokens": (2, dict(shuffle_caption=True)),
    "keep_tokens_separator": ("number", dict(shuffle_caption=True)),
    "caption_dropout_rate": (0.5, {}),
    "caption_tag_dropout_rate": (0.5, {}),
    "caption_extension": (".caption", {}),
    "caption_lines": ("first", {}),
    "caption_wildcards": (True, {}),
    "trigger_only_rate": (0.5, dict(trigger_word="zib")),
    "lora_type": ("loha", {}),
    "lora_targets": ("all", {}),
    "attention_rank": (2, {}),
    "attention_alpha": (2.0, {}),
    "feed_forward_rank": (2, {}),
    "feed_forward_alpha": (2.0, {}),
    "conv_rank": (2, dict(lora_targets="all")),
    "conv_alpha": (2.0, dict(lora_targets="all")),
    "lora_blocks": ("IN01=2", {}),
    "lokr_factor": (2, dict(lora_type="lokr", lora_rank=2)),
    "rslora": (True, {}),
    "block_learning_rates": ("IN01=0.5", {}),
    "loraplus_lr_ratio": (4.0, {}),
    "loraplus_text_encoder_lr_ratio": (4.0, {}),
    "use_dora": (True, {}),
    "lora_dropout": (0.5, {}),
    "rank_dropout": (0.5, {}),
    "module_dropout": (0.5, {}),
    "scale_weight_norms": (0.001, {}),
    "train_unet": (False, {}),
    "train_text_encoder": (False, {}),
    "text_encoder_lr": (1e-3, {}),
    "text_encoder_rank": (2, {}),
    "text_encoder_alpha": (2.0, {}),
    "optimizer": ("adafactor", {}),
    "optimizer_args": ("betas=0.5,0.9", {}),
    "weight_decay": (0.9, {}),
    "max_grad_norm": (1e-12, {}),
    "scheduler": ("constant", {}),
    "lr_warmup_steps": (2, {}),
    "scheduler_cycles": (1, dict(scheduler="cosine_with_restarts")),
    "scheduler_power": (1.0, dict(scheduler="polynomial")),
    "ema_decay": (0.9, {}),
    "gradient_accumulation_steps": (2, {}),
    "seed": (7, {}),
    "prediction_type": ("v_prediction", {}),
    "zero_terminal_snr": ("on", dict(prediction_type="v_prediction")),
    "loss_type": ("huber", {}),
    "huber_c": (0.5, dict(loss_type="huber")),
    "huber_schedule": ("constant", dict(loss_type="huber")),
    "min_snr_gamma": (0.5, {}),
    "debiased_estimation": (True, {}),
    "v_pred_like_loss": (1.0, {}),
    "scale_v_pred_loss": (True, dict(prediction_type="v_prediction")),
    "noise_offset": (0.1, {}),
    "noise_offset_random": (True, dict(noise_offset=0.1)),
    "multires_noise_iterations": (4, {}),
    "multires_noise_discount": (0.8, dict(multires_noise_iterations=4)),
    "input_perturbation": (0.1, {}),
    "input_perturbation_random": (True, dict(input_perturbation=0.1)),
    "min_timestep": (500, {}),
    "max_timestep": (500, {}),
    "timestep_sampling": ("logit_normal", {}),
    "logit_mean": (1.0, dict(timestep_sampling="logit_normal")),
    "logit_std": (0.2, dict(timestep_sampling="logit_normal")),
    "mixed_precision": ("bf16", {}),
    "save_precision": ("fp16", {}),
}
ELSEWHERE = {  # setting: the tests that show what it does
    "train_data_dir": "tests/dataset/test_folders.py",
    "extra_data_dirs": "tests/dataset/test_folders.py",
    "metadata_path": "tests/dataset/test_folders.py",
    "base_model": "tests/cli/test_train.py",
    "output_name": "tests/runs/test_snapshots.py",
    "output_dir": "tests/runs/test_plan.py",
    "overwrite": "tests/runs/test_output_files.py",
    "preferred_weight": "tests/lora/test_save.py",
    "task_type": "tests/settings/test_files.py",
    "reg_data_dir": "tests/runs/test_every_setting.py",
    "validate_every": "tests/training/test_loop.py",
    "max_token_length": "tests/hosts/test_families.py",
    "weighted_captions": "tests/hosts/test_families.py",
    "clip_skip": "tests/hosts/test_families.py",
    "init_lora": "tests/lora/test_load.py",
    "gradient_checkpointing": "tests/runs/test_every_setting.py",
    "when_memory_runs_out": "tests/runs/test_pipeline_trouble.py",
    "save_steps": "tests/runs/test_snapshots.py",
    "sharing": "tests/runs/test_give_way.py",
    "live": "tests/webui/test_sharing.py",
    "save_state_minutes": "tests/runs/test_saved_states.py",
    "save_state_steps": "tests/runs/test_saved_states.py",
    "keep_states": "tests/runs/test_saved_states.py",
    "preview": "tests/jobs/test_lora_files.py",
    "save_every_n_epochs": "tests/runs/test_snapshots.py",
    "keep_snapshots": "tests/runs/test_snapshots.py",
    "negative_text": "tests/runs/test_lora_writer.py",
    "logging_dir": "tests/jobs/test_training_job.py",
}


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    """Train with BASE and these settings, and return what is in the file; the same settings only
    once.
    """
    folder, known = tmp_path_factory.mktemp("settings"), {}
    pictures = draw_pictures(folder / "pictures")
    with Image.open(pictures / "0.png") as image:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(pictures / "0.png")
    for number in range(6):
        (pictures / f"{number}.caption").write_text("other", encoding="utf-8")
    with open(pictures / "2.txt", "a", encoding="utf-8") as file:
        file.write("\nanother line, in {red|blue}, of number 2\n")
    others, host = shutil.copytree(pictures, folder / "others"), TinyHost(folder / "host")

    def train(*, anew=False, **changes):
        key = tuple(sorted(changes.items()))
        if anew or key not in known:
            values = {
                **SMALL,
                "train_data_dir": str(pictures),
                **BASE,
                **changes,
                "overwrite": True,
            }
            values = {
                name: value.format(others=others) if name == "reg_data_dir" else value
                for name, value in values.items()
            }
            host.model = TinyModel()
            known[key] = safetensors.torch.load(
                train_lora(TrainConfig.parse(values), host).output_file.read_bytes()
            )
        return known[key]

    return train


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_every_setting_is_named_here():
    assert {
        field.name for field in dataclasses.fields(TrainConfig)
    } == LEARNED.keys() | ELSEWHERE.keys() and not LEARNED.keys() & ELSEWHERE.keys()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_tests_of_a_setting_speak_of_it(name):
    text = (Path(__file__).parents[2] / ELSEWHERE[name]).read_text(encoding="utf-8")
    assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("name", LEARNED)
def test_setting_changes_what_is_learned(learn, name):
    value, others = LEARNED[name]
    assert not same(learn(**others), learn(**{**others, name: value}))


def test_the_same_settings_learn_the_same(learn):
    assert same(learn(), learn(anew=True))


def test_what_saves_memory_learns_the_same(learn):
    plain, careful = learn(), learn(gradient_checkpointing=True)
    assert plain.keys() == careful.keys() and all(
        torch.allclose(plain[key], careful[key], atol=1e-6) for key in plain
    )


def test_regularisation_pictures_are_learned_from_too(learn):
    assert not same(learn(), learn(reg_data_dir="{others}"))
