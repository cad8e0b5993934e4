"""Changes of a pipeline's modules for the time of a loan, which are taken back at its end."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def frozen(*modules: torch.nn.Module) -> Iterator[None]:
    """Freeze modules in evaluation mode; every flag is as before at the end."""
    gradients = [
        (parameter, parameter.requires_grad)
        for module in modules
        for parameter in module.parameters()
    ]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.requires_grad_(False).eval()
        yield
    finally:
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def moved_back(device: torch.device, *modules: torch.nn.Module) -> Iterator[None]:
    """Have modules on the device at the end, wherever they were moved meanwhile."""
    try:
        yield
    finally:
        for module in modules:
            module.to(device)
