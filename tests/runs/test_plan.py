"""A run worked out: roles and captions, what contradicts itself, and what a user should know."""

import shutil
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.buckets import bucket_for
from lora_trainer.dataset.caption_augmentation import CaptionAugmentation
from lora_trainer.runs import plan_warnings
from lora_trainer.runs.plan import make_plan
from lora_trainer.runs.step_options import caption_augmentation
from lora_trainer.settings.config import TrainConfig
from lora_trainer.training import optimizers
from lora_trainer.training.conditioning import Conditioner
from tests.support.plans import captions, planned


def repeats(plan):
    return tuple(sample.repeats for sample in plan.samples)


def pictures_of(plan):
    return [sample.picture for sample in plan.samples]


def buckets(plan):
    return [sample.bucket for sample in plan.samples]


def test_roles_captions_and_repeats(host, settings, others):
    plan = planned(
        settings,
        host,
        trigger_word="zib",
        reg_data_dir=str(others),
        validation_split=0.2,
        keep_tokens_separator="|||",
    )
    assert [sample.role for sample in plan.samples] == ["train"] * 5 + ["regularisation"] * 2 + [
        "validation"
    ]
    assert len(plan.samples) == 8
    assert all(
        caption.startswith("zib, a circle, number")
        for caption in captions(plan)[:5] + captions(plan)[7:]
    )
    assert captions(plan)[5:7] == ["any circle", "a circle, grey"] and repeats(plan) == (
        1,
        1,
        1,
        1,
        1,
        3,
        2,
        0,
    )
    seen = {
        number
        for step in range(plan.schedule.steps_per_epoch)
        for batch in plan.schedule.batches_of(
            step, [types.SimpleNamespace(sample=sample) for sample in plan.samples]
        )
        for number in batch
    }
    assert seen == set(range(7))  # never the one for validation


def test_each_picture_is_learned_in_each_resolution(host, settings, others):
    plan = planned(
        settings, host, extra_resolutions="128", reg_data_dir=str(others), validation_split=0.2
    )
    single = planned(settings, host, reg_data_dir=str(others), validation_split=0.2)
    assert [sample.role for sample in plan.samples] == ["train"] * 10 + ["regularisation"] * 4 + [
        "validation"
    ]
    assert [sample.resolution_px for sample in plan.samples] == [64] * 5 + [128] * 5 + [64] * 2 + [
        128
    ] * 2 + [64]
    assert (
        pictures_of(plan)[:5] == pictures_of(plan)[5:10] == pictures_of(single)[:5]
        and captions(plan)[:5] == captions(plan)[5:10]
    )
    assert buckets(plan)[:5] == buckets(single)[:5] and repeats(plan) == (1,) * 10 + (
        3,
        2,
        3,
        2,
        0,
    )
    assert all(bucket.width * bucket.height <= 64**2 for bucket in buckets(plan)[:5])
    assert all(96**2 <= bucket.width * bucket.height <= 128**2 for bucket in buckets(plan)[5:10])
    assert plan.schedule.steps_per_epoch > single.schedule.steps_per_epoch
    assert (plan.count("train"), plan.count("regularisation"), plan.count("validation")) == (
        5,
        2,
        1,
    )
    assert sum(row["pictures"] for row in plan.bucket_counts()) == 15
    said = next(warning for warning in plan.warnings if "learned in 64 and 128 px" in warning)
    assert "5 pictures count as 10" in said and "measured in the first" in said
    assert any("smaller than 128x128" in warning for warning in plan.warnings) and not any(
        "64x64" in warning for warning in plan.warnings
    )
    assert {sample.resolution_px for sample in single.samples} == {64} and not any(
        "px:" in warning for warning in single.warnings
    )


def test_small_pictures_that_are_not_enlarged_are_the_same_in_two_resolutions(host, settings):
    plan = planned(settings, host, extra_resolutions="256", bucket_no_upscale=True)
    assert any(
        "6 pictures count as 12. Of them, 2 are of the same size as in another resolution: small"
        in warning
        for warning in plan.warnings
    )
    alike = planned(
        settings, host, extra_resolutions="80"
    ).warnings  # with a bucket step of 32 that is 64
    assert any(
        "6 are of the same size as in another resolution: sides are multiples of the bucket step,"
        " 32 px" in warning
        for warning in alike
    )
    assert not any("will be enlarged" in warning for warning in plan.warnings)


def test_a_resolution_that_came_from_a_rectangle_is_said(host, settings):
    plan = planned(settings, host, resolution="64x128")
    assert [sample.resolution_px for sample in plan.samples] == [91] * 6 and any(
        "91 px" in warning and "rectangle" in warning for warning in plan.warnings
    )


@pytest.mark.parametrize(
    "changes, field, sentence",
    [
        (
            dict(extra_resolutions="768, many"),
            "extra_resolutions",
            "'many' is not a number of pixels from 64 to 2048",
        ),
        (dict(extra_resolutions="32"), "extra_resolutions", "'32' is not"),
        (dict(extra_resolutions="99999999999"), "extra_resolutions", "is not"),
        (
            dict(extra_resolutions=", ".join(map(str, range(100, 110)))),
            "extra_resolutions",
            "11 are too many; at most 8",
        ),
        (
            dict(extra_resolutions="128", bucket_max=96),
            "bucket_max",
            "96 px, is shorter than the resolution, 128 px",
        ),
        (
            dict(resolution=128, extra_resolutions="64", bucket_min=96),
            "bucket_min",
            "96 px, is longer than the resolution, 64 px",
        ),
    ],
)
def test_resolutions_that_cannot_be(host, settings, changes, field, sentence):
    with pytest.raises(Refused, match=sentence) as caught:
        planned(settings, host, **changes)
    assert caught.value.field == field


def test_captions_that_vary_keep_their_separator_until_they_are_drawn(host, settings, others):
    for path in Path(settings["train_data_dir"]).glob("*.txt"):
        path.write_text("a circle ||| red, blue")
    plan = planned(
        settings,
        host,
        reg_data_dir=str(others),
        keep_tokens_separator="|||",
        shuffle_caption=True,
        keep_tokens=1,
        validation_split=0.2,
    )
    assert captions(plan) == ["a circle ||| red, blue"] * 5 + [
        "any circle",
        "a circle ||| grey",
    ] + ["a circle, red, blue"]
    assert caption_augmentation(
        TrainConfig.parse({**settings, "keep_tokens_separator": "|||", "shuffle_caption": True})
    ) == CaptionAugmentation(True, 0, "|||")


@pytest.mark.parametrize(
    "changes, field, sentence",
    [
        (dict(min_timestep=500, max_timestep=500), "min_timestep", "From must be lower than to"),
        (dict(train_unet=False), "train_unet", "Neither the UNet nor the text encoder"),
        (dict(bucket_min=128), "bucket_min", "128 px, is longer than the resolution, 64 px"),
        (dict(bucket_max=32), "bucket_max", "32 px, is shorter than the resolution"),
        (dict(trigger_only_rate=0.1), "trigger_only_rate", "Give a trigger word"),
        (
            dict(trigger_only_rate=0.6, caption_dropout_rate=0.5, trigger_word="x"),
            "caption_dropout_rate",
            "50% of the times and the trigger word alone 60%: more than all",
        ),
        (
            dict(zero_terminal_snr="on", prediction_type="epsilon"),
            "zero_terminal_snr",
            "predicts noise learns nothing from pure noise",
        ),
        (dict(optimizer_args="nonsense=1"), "optimizer_args", "AdamW takes no 'nonsense'"),
        (dict(optimizer_args="betas=0.9"), "optimizer_args", "does not fit. Expected 2 numbers"),
        (
            dict(optimizer="prodigy", learning_rate=1, train_text_encoder=True),
            "text_encoder_lr",
            "finds one learning rate for everything, and 1 .unet. and 5e-05 .text_encoder. differ",
        ),
        (
            dict(optimizer="prodigy", learning_rate=1, loraplus_lr_ratio=16),
            "text_encoder_lr",
            "1 .unet. and 16 .unet x16. differ.*no LoRA. ratio but 1",
        ),
        (
            dict(optimizer="prodigy", learning_rate=1, block_learning_rates="MID=0.5"),
            "text_encoder_lr",
            "0.5 .unet x0.5. differ.*no Learning rates of blocks but 0",
        ),
        (
            dict(
                optimizer="adafactor",
                optimizer_args="relative_step=True",
                block_learning_rates="MID=0.5",
            ),
            "optimizer_args",
            "one learning rate for everything",
        ),
        (
            dict(lora_type="lokr", loraplus_lr_ratio=16),
            "loraplus_lr_ratio",
            "two halves of a LoRA; a lokr has none",
        ),
        (
            dict(lora_type="loha", loraplus_text_encoder_lr_ratio=4),
            "loraplus_lr_ratio",
            "a loha has none",
        ),
        (
            dict(train_unet=False, train_text_encoder=True, text_encoder_lr=0),
            "text_encoder_lr",
            "learning rate is 0, so nothing would learn",
        ),
        (dict(reg_data_dir="/nowhere"), "reg_data_dir", "does not exist"),
        (dict(extra_data_dirs="/nowhere"), "extra_data_dirs", "does not exist"),
    ],
)
def test_what_contradicts_itself_is_refused(host, settings, changes, field, sentence):
    with pytest.raises(Refused, match=sentence) as refusal:
        planned(settings, host, **changes)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "changes",
    [
        dict(train_unet=False, train_text_encoder=True),
        dict(bucket_min=128, bucket_no_upscale=True),
        dict(bucket_min=128, enable_bucket=False),
        dict(keep_tokens=2, keep_tokens_separator="|||"),
        dict(random_crop=True, bucket_no_upscale=True),
        dict(min_timestep=999),
        dict(zero_terminal_snr="on"),
        dict(zero_terminal_snr="off", prediction_type="epsilon"),
        dict(optimizer_args="betas=0.9,0.95 eps=1e-7"),
        dict(optimizer="prodigy", learning_rate=1),
        dict(optimizer="prodigy", learning_rate=1, train_text_encoder=True, text_encoder_lr=0),
        dict(
            optimizer="prodigy",
            learning_rate=1,
            train_text_encoder=True,
            lora_blocks="BASE=0, OUT08",
        ),
        dict(
            optimizer="prodigy",
            learning_rate=1,
            train_text_encoder=True,
            lora_blocks="IN00-OUT11=0, BASE",
        ),
        dict(optimizer="prodigy", learning_rate=1, block_learning_rates="MID=0"),
        dict(lora_type="lokr", use_dora=True),
        dict(train_unet=False, train_text_encoder=True, lora_blocks="BASE=0"),
    ],
)
def test_what_does_not_contradict_itself(host, settings, changes):
    plan = planned(settings, host, **changes)
    assert [sample.role for sample in plan.samples] == ["train"] * 6


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(lr_warmup_steps=6), "The warm-up takes 6 steps and the run 6"),
        (dict(conv_rank=4), "change nothing unless Layers is all"),
        (dict(train_text_encoder=True, text_encoder_lr=0), "The text encoder's learning rate is 0"),
        (
            dict(masked_loss="files"),
            "6 of 6 pictures (0.png, …) have no mask beside them: all of them is learned.",
        ),
        (dict(resolution=128), "6 pictures are smaller than 128x128 and will be enlarged"),
    ],
)
def test_what_a_user_should_know(host, settings, changes, sentence):
    assert any(sentence in warning for warning in planned(settings, host, **changes).warnings)
    assert not any(sentence in warning for warning in planned(settings, host).warnings)


def test_buckets_as_set(host, settings):
    config = TrainConfig.parse(
        {**settings, "resolution": 512, "bucket_step": 64, "bucket_max": 640, "bucket_min": 256}
    )
    assert (bucket_for(2000, 500, config).width, bucket_for(2000, 500, config).height) == (640, 256)
    assert bucket_for(300, 500, config.replace(bucket_no_upscale=True)).covering == (300, 500)


def test_pictures_that_fill_the_memory_are_said(host, settings, monkeypatch):
    assert not any(
        "memory" in warning
        for warning in planned(settings, host, color_jitter=0.1, mirror=True).warnings
    )
    monkeypatch.setattr(plan_warnings, "LARGE_CACHE_BYTES", 10_000)
    found = planned(settings, host, color_jitter=0.1, mirror=True).warnings
    assert any(
        "encoded pictures will take about" in warning
        and "Mirror doubles it, Colour jitter makes it fourfold" in warning
        for warning in found
    )


# --- Going on from a LoRA -------------------------------------------------------------------------


def saved_lora(folder, *layers):
    save_file(
        {
            f"{layer}.{part}": tensor
            for layer in layers
            for part, tensor in {
                "lora_down.weight": torch.zeros(2, 4),
                "lora_up.weight": torch.zeros(4, 2),
                "alpha": torch.tensor(1.0),
            }.items()
        },
        str(folder / "first.safetensors"),
    )
    return str(folder / "first.safetensors")


def test_the_kind_of_a_lora_that_is_gone_on_from_wins(host, settings, tmp_path):
    found = planned(
        settings, host, init_lora=saved_lora(tmp_path, "lora_unet_x"), lora_type="lokr"
    ).warnings
    assert "first.safetensors is a lora, and so will this be; Kind says lokr." in found


@pytest.mark.parametrize(
    "layers, changes, sentences",
    [
        (["lora_unet_x"], {}, []),
        (["lora_unet_x", "lora_te_y"], dict(train_text_encoder=True), []),
        (["lora_te_y"], dict(train_text_encoder=True, train_unet=False), []),
        (
            ["lora_unet_x", "lora_te_y"],
            {},
            [
                "has layers of the text encoder, so that learns too, at 5e-05; 0 as its learning"
                " rate keeps it as it is."
            ],
        ),
        (["lora_unet_x", "lora_te_y"], dict(text_encoder_lr=0), []),
        (
            ["lora_unet_x"],
            dict(train_text_encoder=True, train_unet=False),
            [
                "has no layers of the text encoder, so that does not learn.",
                "has layers of the UNet, so that learns too, although it is switched off.",
            ],
        ),
        (
            ["lora_te_y"],
            {},
            [
                "has layers of the text encoder, so that learns too",
                "has no layers of the UNet, so that does not learn.",
            ],
        ),
    ],
)
def test_which_part_learns_is_the_files_to_say(
    host, settings, tmp_path, layers, changes, sentences
):
    found = [
        warning
        for warning in planned(
            settings, host, init_lora=saved_lora(tmp_path, *layers), **changes
        ).warnings
        if "layers of the" in warning
    ]
    assert len(found) == len(sentences) and all(
        warning.startswith("first.safetensors ") and sentence in warning
        for warning, sentence in zip(found, sentences)
    )


def test_rates_are_those_of_what_the_file_lets_learn(host, settings, tmp_path):
    both, finds = (
        saved_lora(tmp_path, "lora_unet_x", "lora_te_y"),
        dict(optimizer="prodigy", learning_rate=1),
    )
    with pytest.raises(Refused, match="differ"):
        planned(settings, host, init_lora=both, **finds)
    planned(settings, host, init_lora=both, text_encoder_lr=1, **finds)
    planned(
        settings,
        host,
        init_lora=saved_lora(tmp_path, "lora_unet_x"),
        train_text_encoder=True,
        **finds,
    )
    planned(
        settings, host, session_id=1.0, train_text_encoder=True, **finds
    )  # a state knows better what learns


# --- At every key press ---------------------------------------------------------------------------


def test_a_quick_plan_decodes_nothing(host, settings, pictures, others, monkeypatch):
    Image.linear_gradient("L").save(pictures / "0-masklabel.png")
    monkeypatch.setattr(Image.Image, "load", lambda *args: pytest.fail("decoded"))
    plan = planned(
        settings,
        host,
        thorough=False,
        masked_loss="files",
        reg_data_dir=str(others),
        validation_split=0.2,
        color_jitter=0.1,
    )
    masks = {sample.picture.path: sample.mask for sample in plan.samples if sample.mask}
    assert masks == {pictures / "0.png": pictures / "0-masklabel.png"}


def test_a_quick_plan_of_many_pictures_is_quick(host, settings, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "0.png")
    for number in range(1, 600):
        (folder / f"{number}.png").write_bytes((folder / "0.png").read_bytes())
    planned(settings, host, thorough=False, train_data_dir=str(folder), masked_loss="files")
    began = time.perf_counter()
    planned(
        settings,
        host,
        thorough=False,
        train_data_dir=str(folder),
        masked_loss="files",
        validation_split=0.1,
    )
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    "changes, field",
    [
        (dict(optimizer_args="nonsense=1"), "optimizer_args"),
        (dict(zero_terminal_snr="on", prediction_type="epsilon"), "zero_terminal_snr"),
        (dict(train_unet=False, train_text_encoder=True, text_encoder_lr=0), "text_encoder_lr"),
        (dict(lora_type="lokr", lokr_factor=0), "lokr_factor"),
    ],
)
def test_what_could_never_run_is_refused_by_the_plan(host, settings, changes, field):
    with pytest.raises(Refused) as caught:
        make_plan(TrainConfig.parse({**settings, **changes}), lora_dir=host.lora_dir)
    assert caught.value.field == field


def test_an_optimizer_that_is_not_there_is_refused_by_the_plan(host, settings, monkeypatch):
    monkeypatch.setattr(optimizers, "is_installed", lambda kind: False)
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    with pytest.raises(Refused, match="lion-pytorch") as caught:
        make_plan(TrainConfig.parse({**settings, "optimizer": "lion"}), lora_dir=host.lora_dir)
    assert caught.value.field == "optimizer"


def test_a_folder_of_no_repeats_is_left_out(host, settings, pictures, tmp_path):
    nothing = shutil.copytree(pictures, pictures / "0_nothing")
    plan = make_plan(TrainConfig.parse(settings), lora_dir=host.lora_dir)
    assert (
        len(plan.samples) == 6
        and len(plan.problems) == 1
        and "0 repeats" in plan.problems[0].reason
    )
    alone = tmp_path / "alone"
    shutil.copytree(nothing, alone / "0_nothing")
    with pytest.raises(Refused, match="0 repeats"):
        make_plan(
            TrainConfig.parse({**settings, "train_data_dir": str(alone)}), lora_dir=host.lora_dir
        )


def test_the_package_of_an_optimizer_is_looked_for_and_not_tried(host, settings, monkeypatch):
    monkeypatch.setattr(optimizers, "_try", lambda *args: pytest.fail("a step was taken"))
    for name, kind in optimizers.KINDS.items():
        if kind.package:
            with monkeypatch.context() as patched:
                patched.setitem(sys.modules, kind.module.split(".")[0], None)
                with pytest.raises(
                    Refused,
                    match=(
                        f"needs the package {kind.package}, which is not installed. Install it"
                        " with: .* -m pip install"
                    ),
                ) as refusal:
                    planned(settings, host, optimizer=name, optimizer_args="betas=1")
                assert (refusal.value.field, refusal.value.code) == ("optimizer", "no_package")


def test_a_slow_package_is_not_imported_for_a_plan(host, settings, monkeypatch, tmp_path):
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text(
        "raise RuntimeError('imported')", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    planned(
        settings, host, optimizer="adamw8bit", optimizer_args="nonsense=1"
    )  # seen when the run begins
    package, module = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.optim")
    package.__spec__ = types.SimpleNamespace(name="bitsandbytes")
    module.AdamW8bit = torch.optim.AdamW
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    with pytest.raises(
        Refused, match="AdamW 8-bit takes no 'nonsense'"
    ):  # unless others have imported it already
        planned(settings, host, optimizer="adamw8bit", optimizer_args="nonsense=1")


def test_settings_of_an_optimizer_are_read_quickly(host, settings):
    began = time.perf_counter()
    with pytest.raises(Refused, match="does not fit") as refusal:
        planned(settings, host, optimizer_args="eps=" + "-" * 19_900 + "1")
    assert time.perf_counter() - began < 1.0 and len(refusal.value.message) < 1000


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(shuffle_caption=True), "stand between commas"),
        (dict(optimizer="adamw", learning_rate=1.0), "will break the pictures"),
    ],
)
def test_what_would_disappoint_is_said_before_the_run(host, settings, pictures, changes, words):
    for caption in pictures.glob("*.txt"):
        caption.write_text("one part alone", encoding="utf-8")
    plan = planned(settings, host, **changes)
    assert any(words in warning for warning in plan.warnings) and not any(
        words in warning for warning in planned(settings, host).warnings
    )


# --- Captions that can be read in more than one way -----------------------------------------------


def test_validation_measures_with_one_and_the_same_caption(host, settings, lines):
    for path in lines.glob("*.txt"):
        path.write_text("a {red|blue} circle\nanother", encoding="utf-8")
    plan = planned(
        settings, host, caption_lines="alternatives", caption_wildcards=True, validation_split=0.3
    )
    assert {sample.caption for sample in plan.samples if sample.role == "validation"} == {
        "a red circle"
    }


def test_a_run_with_drawn_captions_that_is_resumed_is_the_same_run(settings, pictures, tmp_path):
    """What is drawn depends on the seed and the step alone, so going on draws what would have been
    drawn.
    """
    for path in pictures.glob("*.txt"):
        path.write_text("a {red|blue|green|grey} circle\nanother, shape\nzib", encoding="utf-8")
    augmentation = caption_augmentation(
        TrainConfig.parse({**settings, "caption_lines": "alternatives", "caption_wildcards": True})
    )
    conditioners = [Conditioner(augmentation), Conditioner(augmentation)]
    caption = "a {red|blue|green|grey} circle\nanother, shape\nzib"
    batch = types.SimpleNamespace(
        samples=[types.SimpleNamespace(caption=caption, role="train")] * 4
    )
    whole = [conditioners[0].draw_captions(batch, seed=3, number=step) for step in range(8)]
    assert (
        whole[4:]
        == [conditioners[1].draw_captions(batch, seed=3, number=step) for step in range(4, 8)]
        and len({tuple(each) for each in whole}) > 4
    )


def test_one_file_by_two_spellings_is_no_clash(host, settings, tmp_path):
    """A folder reached by a link, or a name in other letters on a disk that knows no case, is the
    LoRA itself.
    """
    (host.lora_dir / "mine.safetensors").write_bytes(b"an earlier one")
    (tmp_path / "link").symlink_to(host.lora_dir, target_is_directory=True)
    plan = planned(settings, host, output_dir=str(tmp_path / "link"), overwrite=True)
    assert plan.output_file == tmp_path / "link" / "mine.safetensors"


def test_a_lora_of_the_name_in_another_folder_is_a_clash(host, settings):
    (host.lora_dir / "people").mkdir()
    (host.lora_dir / "people" / "mine.safetensors").write_bytes(b"")
    with pytest.raises(Refused, match="would be mixed up with. Call the new one mine-2"):
        planned(settings, host, overwrite=True)
    with pytest.raises(Refused, match="Move it away: a run keeps its name"):
        planned(settings, host, session_id=1.0)


def test_snapshots_of_another_run_may_be_replaced(host, settings):
    (host.lora_dir / "mine-000003.safetensors").write_bytes(b"")
    with pytest.raises(Refused, match="Replace it, or call the new one mine-2"):
        planned(settings, host, save_steps=3)
    assert planned(settings, host, save_steps=3, overwrite=True).warnings is not None
