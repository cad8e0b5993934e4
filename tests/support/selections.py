"""Folders of pictures, and what a run selects of them."""

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.sample import ROLES
from lora_trainer.dataset.selection import select
from lora_trainer.settings.config import TrainConfig


def fill(folder, *names, caption="", size=(64, 64)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def selected(folder, thorough=True, **settings):
    return select(TrainConfig.parse({"train_data_dir": str(folder), **settings}), thorough=thorough)


def named(selection, role="train"):
    return {picture.path.stem: picture.repeats for picture in selection.of(role)}


def roles(selection):
    return [role for role in ROLES for _ in selection.of(role)]


def pictures(selection):
    return [picture for role in ROLES for picture in selection.of(role)]


def repeats_of(selection):
    """How often each picture is trained in an epoch."""
    return [picture.repeats for picture in selection.training + selection.regularisation] + [
        0 for _ in selection.validation
    ]


def refused(folder, **settings):
    with pytest.raises(Refused) as refusal:
        selected(folder, **settings)
    return refusal.value
