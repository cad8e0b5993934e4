"""Names of the weights of SD's VAE: from diffusers' layout to the checkpoint's own (LDM)."""

import re

from ..lora.weight_names import LEVELS

_VAE_RULES = (
    (r"(en|de)coder\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}coder.mid.block_{int(m[2]) + 1}"),
    (r"(en|de)coder\.mid_block\.attentions\.0", lambda m: f"{m[1]}coder.mid.attn_1"),
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"encoder.down.{m[1]}.block.{m[2]}"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", lambda m: f"encoder.down.{m[1]}.downsample"),
    (
        r"decoder\.up_blocks\.(\d)\.resnets\.(\d)",
        lambda m: f"decoder.up.{LEVELS - 1 - int(m[1])}.block.{m[2]}",
    ),
    (
        r"decoder\.up_blocks\.(\d)\.upsamplers\.0",
        lambda m: f"decoder.up.{LEVELS - 1 - int(m[1])}.upsample",
    ),
)


_VAE_LEAVES = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def vae_to_ldm(key: str) -> str:
    """Turn a diffusers key of SD's VAE into LDM's, without `first_stage_model.`"""
    for pattern, replacement in _VAE_RULES:
        key = re.sub("^" + pattern, replacement, key)
    for diffusers, ldm in _VAE_LEAVES.items():
        key = re.sub(rf"\.{re.escape(diffusers)}\.", f".{ldm}.", key)
    return key
