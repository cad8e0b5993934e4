"""The WebUI's built-in Lora extension: takes its LoRAs out of the weights, its memory and the cards
on the page, and finds the LoRAs that prompts call.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from modules import extra_networks, processing, shared

if TYPE_CHECKING:
    from modules.ui_extra_networks import ExtraNetworksPage


def lora_networks() -> ModuleType | None:
    """Return the built-in Lora extension's `networks` module, or None where it is switched off."""
    registered = extra_networks.extra_network_registry.get("lora")
    return getattr(sys.modules.get(type(registered).__module__), "networks", None)


def remove_loras(models: list[torch.nn.Module]) -> None:
    """Put back the weights that LoRAs of earlier pictures changed, and forget that they did."""
    networks = lora_networks()
    if networks is None:
        return
    if models:
        networks.load_networks([], [], [], [])
    with torch.no_grad():
        modules = (module for model in models for module in model.modules())
        for module in (each for each in modules if hasattr(each, "network_layer_name")):
            networks.network_restore_weights_from_backup(module)
            networks.network_reset_cached_weight(module)


def forget_lora(path: Path) -> None:
    """Drop what is kept in memory of a LoRA file, and text embeddings made with it."""
    networks = lora_networks()
    if networks is not None:
        real_path = os.path.realpath(path)
        for name, network in list(networks.networks_in_memory.items()):
            is_same_file = os.path.realpath(network.network_on_disk.filename) == real_path
            if name == path.stem or is_same_file:
                networks.networks_in_memory.pop(name)
    txt2img = processing.StableDiffusionProcessingTxt2Img
    for cache in (txt2img.cached_c, txt2img.cached_uc, txt2img.cached_hr_c, txt2img.cached_hr_uc):
        cache[:] = [None] * len(cache)


def list_again() -> None:
    """Look through the LoRA folder again, and let the next page that is opened show new cards."""
    networks = lora_networks()
    if networks is not None:
        networks.list_available_networks()
    for card_pages in _card_pages():
        card_pages.pages_contents = []


def _card_pages() -> Iterator["ExtraNetworksPage"]:
    """Find the WebUI's ExtraNetworksUi objects, which only functions of its page refer to."""
    for function in getattr(shared.demo, "fns", None) or ():
        for cell in getattr(function.fn, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # a cell may be empty
                if hasattr(cell.cell_contents, "pages_contents"):
                    yield cell.cell_contents


def loras_in(prompts: list[str]) -> set[str]:
    """Return the names that prompts call by `<lora:name…>`."""
    return {
        name.strip()
        for prompt in prompts
        for name in re.findall(r"<(?:lora|lyco):([^:<>]+)", prompt)
    }
