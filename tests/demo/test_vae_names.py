"""The VAE's weights in the layout of a checkpoint."""

import pytest

from lora_trainer.demo.vae_names import vae_to_ldm


@pytest.mark.parametrize(
    "diffusers, ldm",
    [
        (
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
            "encoder.down.1.block.0.nin_shortcut.weight",
        ),
        ("decoder.up_blocks.0.upsamplers.0.conv.bias", "decoder.up.3.upsample.conv.bias"),
        ("encoder.mid_block.attentions.0.to_out.0.weight", "encoder.mid.attn_1.proj_out.weight"),
        ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
        ("quant_conv.weight", "quant_conv.weight"),
    ],
)
def test_vae_names(diffusers, ldm):
    assert vae_to_ldm(diffusers) == ldm
