"""Names of the same weights in two layouts: the checkpoint's own (LDM and sgm, "compvis") and
diffusers'.

SD1 and SD2 share one block layout, of four levels with two residual blocks each; SDXL has three,
and SSD-1B is SDXL with fewer layers inside. LoRA files for SD1 and SD2 name blocks as diffusers
does, whatever model they were trained on, those for SDXL as its checkpoint does.
"""

import functools

LEVELS, SDXL_LEVELS, BLOCKS_PER_LEVEL = 4, 3, 2
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_TO_LDM = {diffusers: ldm for ldm, diffusers in _RESNET.items()}


@functools.cache
def _to_diffusers(levels: int) -> dict[str, str]:
    """Pairs of LDM and diffusers prefixes for everything but the insides of residual blocks."""
    pairs = {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }
    stride = BLOCKS_PER_LEVEL + 1
    for level in range(levels):
        for block in range(BLOCKS_PER_LEVEL):
            number = 1 + stride * level + block
            pairs[f"input_blocks.{number}.0"] = f"down_blocks.{level}.resnets.{block}"
            pairs[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{block}"
        pairs[f"input_blocks.{stride * (level + 1)}.0.op"] = (
            f"down_blocks.{level}.downsamplers.0.conv"
        )
        for block in range(stride):
            number = stride * level + block
            pairs[f"output_blocks.{number}.0"] = f"up_blocks.{level}.resnets.{block}"
            pairs[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{block}"
        last = stride * level + BLOCKS_PER_LEVEL
        after_attention = level > 0 or levels == SDXL_LEVELS
        upsampler = f"output_blocks.{last}.{2 if after_attention else 1}.conv"
        pairs[upsampler] = f"up_blocks.{level}.upsamplers.0.conv"
    return pairs


@functools.cache
def _to_ldm(levels: int) -> dict[str, str]:
    return {diffusers: ldm for ldm, diffusers in _to_diffusers(levels).items()}


def unet_to_diffusers(path: str, levels: int = LEVELS) -> str:
    """Turn an LDM module path of a UNet of so many levels into diffusers'; raises KeyError for a
    path that is in no block.
    """
    table = _to_diffusers(levels)
    prefix = _longest_prefix(path, table)
    inner_names = _RESNET if ".resnets." in table[prefix] else {}
    return _join(table[prefix], path[len(prefix) :], inner_names)


def unet_to_ldm(path: str, levels: int = LEVELS) -> str:
    """Turn a diffusers module path of a UNet of so many levels into LDM's, without
    `model.diffusion_model.`; raises KeyError.
    """
    table = _to_ldm(levels)
    prefix = _longest_prefix(path, table)
    inner_names = _RESNET_TO_LDM if ".resnets." in prefix else {}
    return _join(table[prefix], path[len(prefix) :], inner_names)


def _longest_prefix(path: str, table: dict[str, str]) -> str:
    matches = [prefix for prefix in table if path == prefix or path.startswith(prefix + ".")]
    if not matches:
        raise KeyError(f"{path} is in no block of a Stable Diffusion UNet")
    return max(matches, key=len)


def _join(prefix: str, rest: str, inner_names: dict[str, str]) -> str:
    """Append what follows a block's prefix, with a residual block's own layers renamed."""
    rest = rest.lstrip(".")
    for old, new in inner_names.items():
        if rest == old or rest.startswith(old + "."):
            rest = new + rest[len(old) :]
            break
    return f"{prefix}.{rest}" if rest else prefix
