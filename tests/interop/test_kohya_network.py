"""The network of an sd-scripts file in our settings: kind, ranks, blocks and rates of blocks."""

import pytest

from lora_trainer.interop.kohya_network import block_list
from lora_trainer.lora.blocks import read_block_rates, read_blocks
from lora_trainer.settings.config import setting_of
from tests.support.kohya_settings import settings, taken


@pytest.mark.parametrize(
    "values, expected, left",
    [
        (
            {"network_module": "networks.lora", "network_dim": 16},
            dict(lora_type="lora", lora_targets="attention+feed-forward", lora_rank=16),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_dim": 16, "network_alpha": 0},
            dict(lora_alpha=16.0),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_args": ["conv_dim=8"]},
            dict(lora_targets="all", conv_rank=8, conv_alpha=1.0),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_args": "conv_dim=8 conv_alpha=0"},
            dict(lora_targets="all", conv_rank=8, conv_alpha=8.0),
            [],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_dim": 16,
                "network_alpha": 8,
                "network_args": ["algo=locon"],
            },
            dict(lora_type="lora", lora_targets="all", conv_rank=16, conv_alpha=8.0),
            [],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": [
                    "algo=lokr",
                    "preset=attn-mlp",
                    "factor=8",
                    "dropout=0.2",
                    "rs_lora=True",
                ],
            },
            dict(
                lora_type="lokr",
                lora_targets="attention+feed-forward",
                lokr_factor=8,
                lora_dropout=0.2,
                rslora=True,
            ),
            ["network_args dropout"],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": [
                    "algo=loha",
                    "preset=attn-only",
                    "dora_wd=True",
                    "use_tucker=False",
                ],
            },
            dict(lora_type="loha", lora_targets="attention", use_dora=True),
            [],
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["preset=unet-transformer-only"]},
            dict(train_text_encoder=False),
            [],
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=boft"]},
            dict(lora_type="lora"),
            ["network_module"],
        ),
        ({"network_module": "networks.oft"}, dict(lora_type="lora"), ["network_module"]),
        (
            {
                "network_module": "networks.lora",
                "network_args": ["loraplus_lr_ratio=16", "nonsense=1"],
            },
            dict(loraplus_lr_ratio=16.0),
            ["network_args nonsense"],
        ),
        (
            {
                "network_module": "networks.lora",
                "network_args": ["loraplus_lr_ratio=16", "loraplus_text_encoder_lr_ratio=4"],
            },
            dict(loraplus_lr_ratio=16.0, loraplus_text_encoder_lr_ratio=4.0),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_args": ["loraplus_unet_lr_ratio=8"]},
            dict(loraplus_lr_ratio=8.0, loraplus_text_encoder_lr_ratio=1.0),
            [],
        ),
        (
            {
                "network_module": "networks.lora",
                "network_args": ["loraplus_text_encoder_lr_ratio=4"],
            },
            dict(loraplus_text_encoder_lr_ratio=4.0),
            [],
        ),
        ({"network_module": "networks.lora", "network_args": ["loraplus_lr_ratio=0"]}, {}, []),
        (
            {"network_module": "networks.loha", "network_args": ["loraplus_lr_ratio=16"]},
            dict(lora_type="loha"),
            ["network_args loraplus_lr_ratio"],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": ["algo=locon", "weight_decompose=True", "wd_on_output=True"],
            },
            dict(lora_type="lora", use_dora=True),
            ["network_args wd_on_output"],
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": ["algo=locon", "dora_wd=True", "wd_on_output=False"],
            },
            dict(use_dora=True),
            [],
        ),
        (
            {"network_dim": 16, "network_alpha": 16, "conv_dim": 4},
            dict(lora_targets="all", conv_rank=4, conv_alpha=1.0),
            [],
        ),
        (
            {"network_args": ["conv_dim=4"]},
            dict(lora_targets="all", conv_rank=4, conv_alpha=1.0),
            [],
        ),
        (
            {"conv_dim": 0, "conv_alpha": 2},
            dict(lora_targets=None, conv_rank=None, conv_alpha=None),
            [],
        ),
        (
            {"network_module": "networks.lora", "network_dropout": 0.1},
            dict(lora_dropout=0.1),
            ["network_dropout"],
        ),
        ({"network_module": "networks.lora", "network_dropout": 0}, dict(lora_dropout=None), []),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "factor=0"]},
            dict(lora_type="lokr", lokr_factor=None),
            [],
        ),
        ({"network_module": "networks.lora", "network_dim": "Dynamic"}, {}, ["network_dim"]),
        (
            {
                "network_module": "lycoris.kohya",
                "network_dim": 100000,
                "network_args": ["algo=lokr"],
            },
            dict(lora_rank=1024, conv_rank=1024),
            ["network_dim"],
        ),
        ({"network_dim": 100000}, {}, ["network_dim"]),
    ],
)
def test_networks(values, expected, left):
    found, left_out, _ = taken(values)
    assert {name: found.get(name) for name in expected} == expected and sorted(left_out) == left


def sd1(**blocks):
    names = [*(f"IN{at:02}" for at in range(12)), "MID", *(f"OUT{at:02}" for at in range(12))]
    return [blocks.get(name, 0) for name in names]


@pytest.mark.parametrize(
    "ranks, alphas, expected",
    [
        (
            sd1(IN04=8, IN05=8, MID=64, OUT03=8),
            [4] * 12 + [32] + [4] * 12,
            "IN04-IN05, MID=64:32, OUT03",
        ),
        (sd1(IN11=8, MID=8, OUT00=8), [4] * 25, "IN11, MID, OUT00"),
        ([8] * 25, [4] * 25, ""),
        ([16] * 25, [4] * 25, "IN00-IN11=16:4, MID=16:4, OUT00-OUT11=16:4"),
        ([0, *[0] * 4, *[8] * 5, *[16] * 3, *[0] * 9, 0], [4] * 23, "IN04-IN08, MID=16:4"),
        ([0] * 25, [4] * 25, None),
        ([8] * 12, [4] * 12, None),
        ([8] * 10 + [8, 4, 8] + [8] * 10, [4] * 23, None),
    ],
)
def test_blocks_by_the_webuis_names(ranks, alphas, expected):
    assert block_list(ranks, alphas, rank=8, alpha=4) == expected


def test_our_reader_takes_the_blocks_as_they_were_meant():
    found = settings(
        {
            "network_module": "networks.lora",
            "network_dim": 8,
            "network_alpha": 4,
            "network_args": [
                "block_dims=" + ",".join(map(str, sd1(IN04=8, IN05=16, MID=64))),
                "block_alphas=" + ",".join(["2"] * 25),
            ],
        }
    )
    blocks = read_blocks(found["lora_blocks"], 4)
    assert {name: (block.rank, block.alpha) for name, block in blocks.items()} == {
        "IN04": (8, 2.0),
        "IN05": (16, 2.0),
        "MID": (64, 2.0),
    }


def block_rates(*arguments, **more):
    found, left_out, _ = taken(
        {
            "network_module": "networks.lora",
            "network_dim": 8,
            "network_args": list(arguments),
            **more,
        }
    )
    return found.get("block_learning_rates"), [key for key in left_out if "lr_weight" in key]


def test_blocks_that_do_not_learn():
    found = block_rates(
        "down_lr_weight=0,0,0,0,1,1,1,1,1,1,1,1",
        "mid_lr_weight=1",
        "up_lr_weight=1,1,1,1,0,0,0,0,0,0,0,0",
    )
    assert found == ("IN00-IN03=0, OUT04-OUT11=0", [])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["down_lr_weight=0.5,1,1,1,1,1,1,1,1,1,1,1", "mid_lr_weight=2"], "IN00=0.5, MID=2"),
        (
            ["up_lr_weight=1,,0.25"],
            "OUT01=0, OUT02=0.25",
        ),  # what is left out is 0 between, 1 at the end
        (["down_lr_weight=1e-3,1", "block_lr_zero_threshold=0"], "IN00=0.001"),
        (["down_lr_weight=0.1,1", "block_lr_zero_threshold=0.1"], "IN00=0"),
        (["up_lr_weight=zeros+.25"], "OUT00-OUT11=0.25"),
        (
            ["down_lr_weight=sine", "up_lr_weight=cosine", "block_lr_zero_threshold=0.9"],
            (
                "IN00-IN07=0, IN08=0.909632, IN09=0.959493, IN10=0.989821, OUT01=0.989821,"
                " OUT02=0.959493, OUT03=0.909632, OUT04-OUT11=0"
            ),
        ),
        (
            ["down_lr_weight=linear+0.1", "mid_lr_weight=0.7,0.7,0.7"],
            ", ".join(f"IN{at:02}={at / 8 + 0.1:g}" for at in range(9)) + ", MID=0.7",
        ),
        (["down_lr_weight=1,1,1,1,1,1,1,1,1,1,1,1", "mid_lr_weight=1", "up_lr_weight=1,1"], None),
    ],
)
def test_learning_rates_of_blocks(arguments, expected):
    """As sd-scripts' get_block_lr_weight reads them; three values for the middle are SDXL's, which
    has nine blocks on each side.
    """
    found, left_out = block_rates(*arguments)
    assert found == expected and not left_out
    assert read_block_rates(found or "", 3 if "0.7" in str(found) else 4) is not None


def test_sdxl_is_told_by_the_checkpoint_and_its_middle_is_one_block():
    found, left_out = block_rates(
        "up_lr_weight=reverse_linear",
        "mid_lr_weight=0.5,0.5,1",
        pretrained_model_name_or_path="sdxl.safetensors",
    )
    assert (
        found.startswith("MID=0.5, OUT01=0.875, OUT02=0.75")
        and found.endswith("OUT08=0")
        and left_out == ["network_args mid_lr_weight"]
    )


@pytest.mark.parametrize(
    "bad",
    [
        "down_lr_weight=tan",
        "down_lr_weight=-1,1",
        "up_lr_weight=1,x",
        "up_lr_weight=cosine+x",
        "down_lr_weight=0.5",
    ],
)
def test_what_is_no_curve_is_said(bad):
    assert block_rates(bad) == (None, [f"network_args {bad.partition('=')[0]}"])


def test_a_dropout_of_another_kind_is_said():
    reasons = [
        taken({"network_module": module, "network_dropout": 0.1})[1]["network_dropout"].reason
        for module in ("networks.lora", "lycoris.kohya")
    ]
    assert (
        all("inputs" in reason for reason in reasons)
        and "between" in reasons[0]
        and "between" not in reasons[1]
    )
    assert "kohya" in setting_of("lora_dropout").help
