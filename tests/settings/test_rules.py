"""Which settings contradict each other, by the config alone. What a plan refuses besides is in
tests/runs/test_plan.py.
"""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.settings.config import TrainConfig
from lora_trainer.settings.rules import check_contradictions, resolutions_of

CONTRADICTIONS = [
    (dict(min_timestep=500, max_timestep=500), "min_timestep"),
    (dict(train_unet=False), "train_unet"),
    (dict(bucket_min=513), "bucket_min"),
    (dict(bucket_min=512, extra_resolutions="256"), "bucket_min"),
    (dict(bucket_max=511), "bucket_max"),
    (dict(bucket_max=512, extra_resolutions="768"), "bucket_max"),
    (dict(zero_terminal_snr="on", prediction_type="epsilon"), "zero_terminal_snr"),
    (dict(lora_type="lokr", lokr_factor=0), "lokr_factor"),
    (dict(lora_type="loha", loraplus_lr_ratio=2), "loraplus_lr_ratio"),
    (dict(lora_type="loha", loraplus_text_encoder_lr_ratio=2), "loraplus_lr_ratio"),
    (
        dict(
            optimizer="adafactor",
            optimizer_args="relative_step = True",
            block_learning_rates="MID=2",
        ),
        "optimizer_args",
    ),
    (
        dict(optimizer="adafactor", optimizer_args="relative_step=true", loraplus_lr_ratio=2),
        "optimizer_args",
    ),
    (dict(trigger_only_rate=0.1), "trigger_only_rate"),
    (
        dict(trigger_word="x", trigger_only_rate=0.6, caption_dropout_rate=0.5),
        "caption_dropout_rate",
    ),
]


@pytest.mark.parametrize("values, field", CONTRADICTIONS)
def test_a_contradiction_names_a_setting(values, field):
    with pytest.raises(Refused) as refusal:
        check_contradictions(TrainConfig.parse(values))
    assert (refusal.value.field, refusal.value.code) == (field, "contradiction")


@pytest.mark.parametrize(
    "values",
    [
        {},
        dict(bucket_min=512, bucket_max=512),
        dict(bucket_min=1024, enable_bucket=False),
        dict(bucket_max=64, bucket_no_upscale=True),
        dict(lora_type="loha", loraplus_text_encoder_lr_ratio=1),
        dict(lora_type="loha", loraplus_lr_ratio=2, init_lora="another"),
        dict(train_unet=False, train_text_encoder=False, init_lora="another"),
        dict(lora_type="lokr", lokr_factor=0, init_lora="another"),
        dict(optimizer="adafactor", optimizer_args="relative_step=False", loraplus_lr_ratio=2),
        dict(optimizer="adamw", optimizer_args="relative_step=true", loraplus_lr_ratio=2),
        dict(trigger_word="x", trigger_only_rate=0.5, caption_dropout_rate=0.5),
    ],
)
def test_what_is_no_contradiction(values):
    check_contradictions(TrainConfig.parse(values))


def test_resolutions():
    config = TrainConfig.parse({"resolution": 512, "extra_resolutions": "768; 1024 512,768"})
    assert resolutions_of(config) == [512, 768, 1024]


@pytest.mark.parametrize(
    "extra, sentence",
    [
        ("2049", "More resolutions: '2049' is not a number of pixels from 64 to 2048."),
        ("63", "from 64 to 2048"),
        ("cat", "'cat' is not a number of pixels"),
        ("64,65,66,67,68,69,70,71", "9 are too many; at most 8"),
    ],
)
def test_resolutions_that_cannot_be(extra, sentence):
    with pytest.raises(Refused, match=sentence) as refusal:
        check_contradictions(TrainConfig.parse({"extra_resolutions": extra}))
    assert (refusal.value.field, refusal.value.code) == ("extra_resolutions", "bad_value")
