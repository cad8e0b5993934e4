"""torch.autocast, on every device and torch that we run on."""

import contextlib

import torch


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Compute in `dtype` where that is safe; in float32, as the tensors are."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute as the tensors are, whatever surrounds this; old torch knows no autocast on other
    devices than these two.
    """
    if device.type not in ("cpu", "cuda"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
