"""An optimizer's own settings, split by one rule wherever they are read."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.runs import lora_metadata
from lora_trainer.settings.config import TrainConfig
from lora_trainer.settings.optimizer_arguments import split_arguments
from lora_trainer.settings.rules import check_contradictions


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("betas=0.9,0.99", [("betas", "0.9,0.99")]),
        (
            "betas=0.9, 0.99 weight_decay = 0.1",
            [("betas", "0.9, 0.99"), ("weight_decay", "0.1")],
        ),
        ("a=1; b=(2, 3),\nc=x", [("a", "1"), ("b", "(2, 3)"), ("c", "x")]),
    ],
)
def test_names_and_values(text, expected):
    assert split_arguments(text) == expected


@pytest.mark.parametrize("text", ["0.9", "betas 0.9", "x betas=0.9"])
def test_what_has_another_form(text):
    with pytest.raises(ValueError, match="is not of the form name=value"):
        split_arguments(text)


def test_the_metadata_of_a_lora_has_what_the_optimizer_got():
    config = TrainConfig.parse({"optimizer_args": "betas=0.9, 0.99 eps = 1e-7"})
    assert lora_metadata._optimizer(config).endswith("AdamW(betas=(0.9, 0.99),eps=1e-7)")


def test_a_relative_step_is_found_however_it_is_written():
    values = {"optimizer": "adafactor", "loraplus_lr_ratio": 2}
    with pytest.raises(Refused):
        check_contradictions(
            TrainConfig.parse({**values, "optimizer_args": "eps=1,2 relative_step = True"})
        )
    for other in ("no_relative_step=True", "relative_step=True relative_step=False", "nonsense"):
        check_contradictions(TrainConfig.parse({**values, "optimizer_args": other}))
