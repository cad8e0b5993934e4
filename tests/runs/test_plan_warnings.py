"""What is said before a run, and that the remedy which is offered sets it right."""

import pytest

from lora_trainer.base.contracts import ModelStatus
from lora_trainer.base.errors import Refused
from lora_trainer.runs.plan import make_plan
from lora_trainer.runs.plan_warnings import batch_warnings, model_warnings
from lora_trainer.settings.config import TrainConfig
from lora_trainer.settings.remedies import ActionableWarning, advice_in, set_to


@pytest.fixture
def good(settings):
    """Settings that nothing is said of."""
    return {**settings, "learning_rate": 1e-4}


def advice(host, values):
    return advice_in(make_plan(TrainConfig.parse(values), lora_dir=host.lora_dir).warnings)


def test_there_is_nothing_to_say_of_the_settings_that_others_are_tried_against(host, good):
    assert advice(host, good) == []


SAID = [
    (
        dict(batch_size=4),
        "Batch size 4: 6 of 6 pictures (repeats included) are in buckets that hold fewer",
        ["Set batch size to 3", "Crop all to squares"],
    ),
    (dict(batch_size=20), "Batch size 20: 6 of 6 pictures", ["Set batch size to 3"]),
    (
        dict(max_train_steps=0, epochs=5000),
        "20,000 steps for 6 pictures are more than 300 each",
        ["Set epochs to 450"],
    ),
    (
        dict(max_train_steps=1801),
        "1,801 steps for 6 pictures are more than 300 each",
        ["Set steps to 1800"],
    ),
    (
        dict(max_train_steps=0, epochs=2, repeats=1000),
        "for 6 pictures are more than 300 each",
        ["Set steps to 1800"],
    ),
    (
        dict(learning_rate=3e-3),
        "A learning rate of 0.003 is far too high for AdamW",
        ["Set the learning rate to 0.0001"],
    ),
    (
        dict(learning_rate=1e-7),
        "far too low for AdamW: it learns next to nothing",
        ["Set the learning rate to 0.0001"],
    ),
    (
        dict(train_text_encoder=True, learning_rate=1.0, text_encoder_lr=0.5),
        "is for Prodigy and D-Adaptation",
        ["Set the learning rates to 0.0001"],
    ),
    (
        dict(train_text_encoder=True, text_encoder_lr=0.01),
        "A learning rate of 0.01 is far too high",
        ["Set the learning rate to 0.0001"],
    ),
    (
        dict(optimizer="lion", learning_rate=1e-4),
        "a third to a tenth",
        ["Set the learning rate to 3e-05"],
    ),
    (dict(optimizer="prodigy", learning_rate=1e-4), "1 is usual", ["Set the learning rate to 1"]),
    (
        dict(optimizer="prodigy", learning_rate=8),
        "its steps are too large",
        ["Set the learning rate to 1"],
    ),
    (
        dict(optimizer="adafactor", learning_rate=0.01),
        "far too high for Adafactor",
        ["Set the learning rate to 0.0001"],
    ),
    (
        dict(optimizer="schedulefree", scheduler="cosine"),
        "needs no schedule",
        ["Set schedule to constant"],
    ),
    (
        dict(shuffle_caption=True, caption_tag_dropout_rate=0.1),
        "no caption has more than one part",
        ["Leave captions as they are"],
    ),
    (
        dict(resolution=128, bucket_step=64),
        "6 pictures are smaller than 128x128",
        ["Never enlarge"],
    ),
    (dict(lr_warmup_steps=6), "The warm-up takes 6 steps and the run 6", ["Set warm-up to 0"]),
    (dict(lr_warmup_steps=4), "The warm-up takes 4 of 6 steps", ["Set warm-up to 0"]),
    (dict(conv_rank=4), "change nothing unless Layers is all", ["Set layers to all"]),
    (
        dict(train_text_encoder=True, text_encoder_lr=0),
        "it learns nothing",
        ["Do not train the text encoder"],
    ),
]


@pytest.mark.parametrize("changes, sentence, labels", SAID, ids=[each[1][:40] for each in SAID])
def test_what_is_said_is_set_right_by_each_of_its_remedies(
    host, good, pictures, changes, sentence, labels
):
    if "optimizer" in changes:
        pytest.importorskip(
            {
                "lion": "lion_pytorch",
                "prodigy": "prodigyopt",
                "adafactor": "transformers",
                "schedulefree": "schedulefree",
            }[changes["optimizer"]]
        )
    if "shuffle_caption" in changes:
        for caption in pictures.glob("*.txt"):
            caption.write_text("one part", encoding="utf-8")
    found = [each for each in advice(host, {**good, **changes}) if sentence in each["message"]]
    assert [each["label"] for each in found] == labels
    for each in found:
        after = make_plan(
            TrainConfig.parse({**good, **changes, **each["changes"]}), lora_dir=host.lora_dir
        ).warnings
        assert not any(sentence in warning or warning == each["message"] for warning in after), each


@pytest.mark.parametrize(
    "count, labels",
    [
        (6, None),
        (5, ["Learn them mirrored, too"]),
        (4, ["Learn them mirrored, too"]),
        (3, []),
        (1, []),
    ],
)
def test_few_pictures(host, good, pictures, count, labels):
    for number in range(count, 6):
        (pictures / f"{number}.png").unlink()
    plan = make_plan(TrainConfig.parse({**good, "batch_size": 1}), lora_dir=host.lora_dir)
    said = [warning for warning in plan.warnings if warning.startswith(f"Only {count} picture")]
    assert bool(said) == (labels is not None)
    assert [each["label"] for each in advice_in(said)] == (labels or [])
    for each in advice_in(said):
        assert "Only" not in str(
            make_plan(
                TrainConfig.parse({**good, "batch_size": 1, **each["changes"]}),
                lora_dir=host.lora_dir,
            ).warnings
        )


def test_buckets_are_counted_with_repeats_and_without_validation():
    config = TrainConfig.parse({"batch_size": 4, "enable_bucket": False})
    figures = dict(pictures=3, total_steps=1, steps_per_epoch=1)
    assert batch_warnings(config, ["a", "a", "b"], [2, 2, 4], **figures) == []
    (said,) = batch_warnings(config, ["a", "a", "a", "a"], [1, 1, 1, 0], **figures)
    assert said.remedies == (set_to("batch_size", 3),) and said.startswith(
        "Batch size 4: 3 of 3 pictures"
    )


@pytest.mark.parametrize(
    "model, resolution, size",
    [
        (ModelStatus(True, family="sdxl", size_px=1024), 512, 1024),
        (ModelStatus(True, family="sdxl"), 512, 1024),
        (ModelStatus(True, family="sdxl", size_px=1024), 768, None),
        (ModelStatus(True, family="sdxl", size_px=1024), 1024, None),
        (ModelStatus(True, family="sd2", size_px=768), 512, 768),
        (ModelStatus(True, family="sd1", size_px=512), 512, None),
        (ModelStatus(True, family="sd1", size_px=64), 64, None),
        (ModelStatus(True, family="sd1"), 64, None),
        (ModelStatus(False, "no"), 64, None),
        (ModelStatus(True, family="sd1", size_px=512), 256, 512),
    ],
)
def test_pictures_much_smaller_than_the_checkpoint_was_made_for(model, resolution, size):
    config = TrainConfig.parse({"resolution": resolution})
    said = model_warnings(config, model)
    assert [each["changes"] for each in advice_in(said)] == ([{"resolution": size}] if size else [])
    for each in said:
        assert f"{size} px" in each and f"{resolution} px" in each and "  " not in each
        assert model_warnings(config.replace(**each.remedies[0].changes), model) == []


def test_validation_that_leaves_nobody_is_refused_with_what_to_do(host, good, pictures):
    for number in range(2, 6):
        (pictures / f"{number}.png").unlink()
    with pytest.raises(Refused, match="there are only 2") as refusal:
        advice(host, {**good, "validation_split": 0.5})
    (remedy,) = refusal.value.details["remedies"]
    assert remedy == {"label": "Set validation to 0", "changes": {"validation_split": 0.0}}
    advice(host, {**good, **remedy["changes"]})


def test_rates_that_prodigy_cannot_tell_apart_are_refused_with_what_to_do(host, good):
    pytest.importorskip("prodigyopt")
    values = {
        **good,
        "optimizer": "prodigy",
        "learning_rate": 1,
        "train_text_encoder": True,
        "text_encoder_lr": 0.5,
    }
    with pytest.raises(Refused, match="differ") as refusal:
        advice(host, values)
    assert advice(host, {**values, **refusal.value.details["remedies"][0]["changes"]}) == []


def test_a_remark_is_a_plain_string_to_all_who_do_not_ask_for_more():
    import json

    remark = ActionableWarning("Sentence.", set_to("batch_size", 2))
    assert (
        json.dumps([remark]) == '["Sentence."]'
        and remark == "Sentence."
        and advice_in(["plain", remark])
        == [{"message": "Sentence.", "label": "Set batch size to 2", "changes": {"batch_size": 2}}]
    )
