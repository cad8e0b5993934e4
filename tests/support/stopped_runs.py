"""Runs that end in the middle."""

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter


class Killed(BaseException):
    """What no handler catches, as a power cut."""


def stop_at(step, error):
    def listen(progress):
        if progress.step == step and progress.stage == "training":
            raise error

    return listen


def run_until(step, config, host, folder, **options):
    """Train until a step is done, then die."""

    def die(progress):
        if progress.step == step and progress.stage == "training":
            raise Killed

    with pytest.raises(Killed):
        train_lora(config, host, folder=folder, reporter=ProgressReporter(die), **options)


def weights_of(host, name="mine"):
    return load_file(host.lora_dir / f"{name}.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
