"""The bench measures what it says: UNets of the true sizes, on the meta device; and steps, on a
narrow one.
"""

import dataclasses

import pytest
import torch

pytest.importorskip("diffusers")

from lora_trainer import bench  # noqa: E402
from lora_trainer.lora.adapter_layers import AdapterSpec
from lora_trainer.lora.adapters import count_parameters
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
from lora_trainer.lora.weight_names import SDXL_LEVELS, unet_to_ldm  # noqa: E402


def parameters_left_by_the_webui() -> int:
    """Count what stays of SDXL when the WebUI makes SSD-1B of it (1.10.1, modules/sd_hijack.py,
    convert_sdxl_to_ssd).
    """
    gone = [
        "middle_block.1.",
        "middle_block.2.",
        "output_blocks.4.1.transformer_blocks.1.",
        "output_blocks.5.1.transformer_blocks.1.",
    ]
    shortened = ("input_blocks.7", "input_blocks.8", "output_blocks.0", "output_blocks.1")
    gone += [
        f"{block}.1.transformer_blocks.{number}." for block in shortened for number in range(4, 10)
    ]
    with torch.device("meta"):
        unet = bench.make_unet("sdxl")
    return sum(
        weight.numel()
        for path, weight in unet.named_parameters()
        if not unet_to_ldm(path, SDXL_LEVELS).startswith(tuple(gone))
    )


@pytest.mark.parametrize(
    ("family", "parameters", "layers"),
    [
        ("sd1", 859_520_964, 192),
        ("sd2", 865_910_724, 192),
        ("sdxl", 2_567_463_684, 722),
        ("ssd-1b", None, 360),
    ],
)
def test_true_sizes(family, parameters, layers):
    """As many parameters as the published UNets, and in SDXL as many layers as kohya's LoRAs for it
    have; every one has a name in the checkpoint.
    """
    with torch.device("meta"):
        unet = bench.make_unet(family)
    assert bench.count_parameters(unet) == (parameters or parameters_left_by_the_webui())
    parts = torch.nn.ModuleDict({"unet": unet})
    shapes = assign_ranks(parts, LayerSettings("attention+feed-forward", rank=16, alpha=16.0))
    assert (
        len(shapes) == layers
        and count_parameters(parts, shapes, AdapterSpec()) > 16 * 1000 * layers
    )
    levels = SDXL_LEVELS if family in ("sdxl", "ssd-1b") else 4
    assert len({unet_to_ldm(path.removeprefix("unet."), levels) for path in shapes}) == layers


@pytest.mark.parametrize("family", ["sd1", "ssd-1b"])
def test_report(monkeypatch, family):
    facts = bench.FAMILIES[family]
    narrow = dataclasses.replace(facts, unet_widths=(32,) * len(facts.unet_widths))
    monkeypatch.setitem(bench.FAMILIES, family, narrow)
    lines = bench.report(
        family=family, size_px=128, steps=2, rank=2, targets="attention"
    ).splitlines()
    assert lines[0].startswith(f"UNet of {family}, ") and [
        line.split()[0] for line in lines[1:5]
    ] == ["bare", "step", "ratio", "between"]
    assert float(lines[3].split()[1]) > 0.5
