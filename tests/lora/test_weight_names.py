"""Both directions of the block names, against names as they stand in files people share."""

import pytest

from lora_trainer.lora.weight_names import SDXL_LEVELS, unet_to_diffusers, unet_to_ldm


@pytest.mark.parametrize(
    "ldm, diffusers",
    [
        ("input_blocks.0.0", "conv_in"),
        (
            "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks.4.0.skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        ("input_blocks.8.1.proj_in", "down_blocks.2.attentions.1.proj_in"),
        ("input_blocks.11.0.emb_layers.1", "down_blocks.3.resnets.1.time_emb_proj"),
        ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1"),
        ("middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
        ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
        (
            "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj",
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",
        ),
        ("out.2", "conv_out"),
    ],
)
def test_unet_names(ldm, diffusers):
    assert unet_to_diffusers(ldm) == diffusers and unet_to_ldm(diffusers) == ldm


@pytest.mark.parametrize(
    "sgm, diffusers",
    [
        ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
        ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        (
            "input_blocks.4.1.transformer_blocks.1.attn2.to_k",
            "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        ),
        (
            "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj",
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
        ),
        (
            "middle_block.1.transformer_blocks.0.attn1.to_out.0",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        ("output_blocks.0.1.proj_in", "up_blocks.0.attentions.0.proj_in"),
        ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks.8.0.skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("out.2", "conv_out"),
    ],
)
def test_sdxl_unet_names(sgm, diffusers):
    assert (
        unet_to_diffusers(sgm, SDXL_LEVELS) == diffusers
        and unet_to_ldm(diffusers, SDXL_LEVELS) == sgm
    )


@pytest.mark.parametrize(
    ("path", "levels"),
    [("embed.0.0", 4), ("input_blocks.12.0", 4), ("input_blocks.9.0", 3), ("output_blocks.9.0", 3)],
)
def test_unknown_block_is_an_error(path, levels):
    with pytest.raises(KeyError, match="in no block"):
        unet_to_diffusers(path, levels)
