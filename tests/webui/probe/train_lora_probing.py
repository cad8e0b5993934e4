"""What the probe's scripts share: looking at the base model, at the built-in Lora extension, and
running as a job does.
"""

import hashlib
import sys
import threading

import ldm.modules.attention
import ldm.modules.diffusionmodules.model
import sgm.modules.attention
import sgm.modules.diffusionmodules.model
import torch
from modules import call_queue, extra_networks, sd_hijack, sd_unet, shared
from safetensors import safe_open

ATTENTION = {
    "ldm": ldm.modules.attention.CrossAttention,
    "ldm VAE": ldm.modules.diffusionmodules.model.AttnBlock,
    "sgm": sgm.modules.attention.CrossAttention,
    "sgm VAE": sgm.modules.diffusionmodules.model.AttnBlock,
}


def digest(*parts) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part if isinstance(part, bytes) else str(part).encode())
    return hashed.hexdigest()


def state() -> dict:
    """Everything of the base model that training must leave as it was; addresses and object ids
    included.
    """
    model = shared.sd_model
    tensors, modules = list(model.state_dict(keep_vars=True).items()), list(model.named_modules())
    return {
        "weights": digest(
            *(
                part
                for name, tensor in tensors
                for part in (
                    name,
                    tensor.dtype,
                    tensor.detach()
                    .cpu()
                    .contiguous()
                    .flatten()
                    .view(torch.uint8)
                    .numpy()
                    .tobytes(),
                )
            )
        ),
        "storages": digest(*((name, tensor.data_ptr(), id(tensor)) for name, tensor in tensors)),
        "modules": digest(
            *((name, type(module).__qualname__, id(module)) for name, module in modules)
        ),
        "requires_grad": digest(
            *((name, parameter.requires_grad) for name, parameter in model.named_parameters())
        ),
        "training": digest(*((name, module.training) for name, module in modules)),
        "own_forwards": [name for name, module in modules if "forward" in vars(module)],
        "hooks": digest(
            *(
                (name, len(module._forward_hooks), len(module._forward_pre_hooks))
                for name, module in modules
            )
        ),
        "gradients": [
            name for name, parameter in model.named_parameters() if parameter.grad is not None
        ],
        "attention": {
            name: f"{each.forward.__module__}.{each.forward.__qualname__} {id(each.forward)}"
            for name, each in ATTENTION.items()
        },
        "peft_config": hasattr(model.model.diffusion_model, "peft_config"),
        "hypernetworks": len(shared.loaded_hypernetworks),
        "tiling": [
            sd_hijack.model_hijack.circular_enabled,
            sum(getattr(module, "padding_mode", "") == "circular" for _, module in modules),
        ],
        "unet_option": str(sd_unet.current_unet_option),
        "applied_loras": sum(
            bool(getattr(module, "network_current_names", ())) for _, module in modules
        ),
        "random": digest(torch.get_rng_state().numpy().tobytes()),
        "fixes": str(sd_hijack.model_hijack.fixes),
        "options": {
            name: shared.opts.data.get(name)
            for name in (
                "sd_model_checkpoint",
                "cross_attention_optimization",
                "CLIP_stop_at_last_layers",
            )
        },
        "locked": call_queue.queue_lock._lock.locked(),
    }


def networks():
    return sys.modules[type(extra_networks.extra_network_registry["lora"]).__module__].networks


def host():
    from lora_trainer.hosts.webui.service import training_service

    return training_service().host


def unmatched(name: str) -> list:
    """Names of the file's modules that the built-in loader found no layer for."""
    on_disk = networks().available_networks[name]
    found = {
        module.network_key.split(".", 1)[0]
        for module in networks().load_network(name, on_disk).modules.values()
    }
    keys = safe_open(on_disk.filename, "pt").keys()
    return sorted({key.split(".", 1)[0] for key in keys} - found)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def in_thread(function):
    """Run as a job does, in a thread of its own; give back what it returns or raise what it
    raises.
    """
    outcome = {}

    def run():
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
