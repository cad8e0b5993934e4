"""What the WebUI's model must be like for training and drawing previews: context managers that take
the loaded `sd_model` and leave it as it was.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ldm.modules.attention
import ldm.modules.diffusionmodules.model
import sgm.modules.attention
import sgm.modules.diffusionmodules.model
import torch
from modules import devices, sd_hijack, sd_hijack_optimizations, sd_unet, shared

from .loras import remove_loras
from .model import text_encoders_of, vae_and_text_encoders

if TYPE_CHECKING:
    from modules.sd_models_types import WebuiSdModel

log = logging.getLogger(__name__)
ATTENTION = (
    ldm.modules.attention.CrossAttention,
    ldm.modules.diffusionmodules.model.AttnBlock,
    sgm.modules.attention.CrossAttention,
    sgm.modules.diffusionmodules.model.AttnBlock,
)


@contextlib.contextmanager
def random_state(sd_model: "WebuiSdModel") -> Iterator[None]:
    """torch's random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def frozen_weights(sd_model: "WebuiSdModel") -> Iterator[None]:
    """No weight of the base model requires a gradient. Afterwards these flags, and which modules
    are in training mode, are as before.
    """
    gradients = [(parameter, parameter.requires_grad) for parameter in sd_model.parameters()]
    training = [(module, module.training) for module in sd_model.modules()]
    try:
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag


def _modules_with_adapters(sd_model: "WebuiSdModel") -> list[torch.nn.Module]:
    """Return the modules that adapters are attached to."""
    return [sd_model.model.diffusion_model, *text_encoders_of(sd_model)]


@contextlib.contextmanager
def structure(sd_model: "WebuiSdModel") -> Iterator[None]:
    """Submodules are the same objects as before, also when adapters could not be detached."""
    parts = _modules_with_adapters(sd_model)
    children = [(module, dict(module._modules)) for part in parts for module in part.modules()]
    had_peft = [part for part in parts if hasattr(part, "peft_config")]
    try:
        yield
    finally:
        for module, before in children:
            if module._modules != before:
                log.warning("putting %s back as it was", type(module).__name__)
                module._modules.clear()
                module._modules.update(before)
        for part in parts:
            if part not in had_peft:
                vars(part).pop("peft_config", None)


@contextlib.contextmanager
def class_forwards(sd_model: "WebuiSdModel") -> Iterator[None]:
    """UNet, text encoders and VAE run the `forward` of their classes; other extensions (hypertile,
    for one) leave theirs on the modules after a picture.
    """
    parts = (*_modules_with_adapters(sd_model), sd_model.first_stage_model)
    modules = [module for part in parts for module in part.modules()]
    replaced = {
        module: vars(module).pop("forward") for module in modules if "forward" in vars(module)
    }
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)
            if module in replaced:
                module.forward = replaced[module]


@contextlib.contextmanager
def clean_state(sd_model: "WebuiSdModel") -> Iterator[None]:
    """LoRAs, hypernetworks, tiling and another UNet of the last picture are off; all but the LoRAs
    come back.
    """
    hijack = sd_hijack.model_hijack
    hypernetworks = list(shared.loaded_hypernetworks)
    tiling = hijack.circular_enabled
    unet_option = sd_unet.current_unet_option
    try:
        remove_loras([sd_model])
        shared.loaded_hypernetworks.clear()
        hijack.apply_circular(False)
        sd_unet.apply_unet("None")
        yield
    finally:
        shared.loaded_hypernetworks[:] = hypernetworks
        hijack.apply_circular(tiling)
        if sd_unet.current_unet_option is not unet_option:
            sd_unet.apply_unet(unet_option.label if unet_option else "None")


@contextlib.contextmanager
def training_attention(sd_model: "WebuiSdModel") -> Iterator[None]:
    """Attention is computed by torch, which keeps no attention matrices for the backward pass; the
    WebUI's default on a GPU keeps them all.
    """
    before = [attention.forward for attention in ATTENTION]
    sdp = sd_hijack_optimizations.SdOptimizationSdp()
    try:
        if sdp.is_available():
            sdp.apply()
        yield
    finally:
        for attention, forward in zip(ATTENTION, before, strict=True):
            attention.forward = forward


@contextlib.contextmanager
def encoders_moved_back(sd_model: "WebuiSdModel") -> Iterator[None]:
    """VAE and text encoders are on the device of before, if training moved them away."""
    places = [
        (module, next(module.parameters()).device) for module in vae_and_text_encoders(sd_model)
    ]
    try:
        yield
    finally:
        if not sd_model.lowvram:
            for module, device in places:
                if next(module.parameters()).device != device:
                    module.to(device)


TRAINING_CONTEXTS = (
    random_state,
    frozen_weights,
    structure,
    class_forwards,
    clean_state,
    training_attention,
    encoders_moved_back,
)
