"""A random SD1 checkpoint of SD1's block layout, 32 channels everywhere, made from diffusers' own models."""
from pathlib import Path

import torch
from safetensors.torch import save_file

from lora_trainer.core.layouts import unet_to_ldm, vae_to_ldm

WIDTH = 32


def make_models(seed: int = 0):
    """Return (unet, vae, text_encoder) with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(WIDTH,) * 4, cross_attention_dim=WIDTH, attention_head_dim=8)
    vae = AutoencoderKL(block_out_channels=(WIDTH,) * 4, layers_per_block=2, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4)
    text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2,
                                                vocab_size=49_408, hidden_act="quick_gelu"))
    return unet.eval(), vae.eval(), text_encoder.eval()


def ldm_state(unet, vae, text_encoder) -> dict[str, torch.Tensor]:
    """Join the models' weights under the names a WebUI checkpoint has."""
    state = {}
    for key, value in unet.state_dict().items():
        path, leaf = key.rsplit(".", 1)
        state[f"model.diffusion_model.{unet_to_ldm(path)}.{leaf}"] = value
    for key, value in vae.state_dict().items():
        name = vae_to_ldm(key)
        is_attention = ".mid.attn_1." in name and name.endswith(".weight") and ".norm." not in name
        state["first_stage_model." + name] = value[:, :, None, None] if is_attention else value
    for key, value in text_encoder.state_dict().items():
        state["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = value
    return {key: value.clone().contiguous() for key, value in state.items()}


def write(path: Path, models=None) -> Path:
    save_file(ldm_state(*(models or make_models())), str(path), metadata={"modelspec.resolution": "64x64"})
    return path
