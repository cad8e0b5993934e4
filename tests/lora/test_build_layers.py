"""Adapter layers as they are built."""

import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, Dropouts, RankAlpha
from lora_trainer.lora.build_layers import build_layers


def test_settings_of_parameters_stay():
    linear = torch.nn.Linear(4, 4)
    linear.bias.requires_grad_(False)
    build_layers(
        {"x": linear}, {"x": RankAlpha(1, 1.0)}, AdapterSpec("loha"), Dropouts(AdapterSpec("loha"))
    )
    assert linear.weight.requires_grad and not linear.bias.requires_grad
