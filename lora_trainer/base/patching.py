"""Patches of single modules that are taken back. The module's class stays as it is, and so does a
`forward` that the host or another extension has put on the module before.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch


@contextlib.contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let one module use another `forward` inside a `with` block."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            vars(module).pop("forward", None)
        else:
            module.forward = before


ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def outline_of(module: ModuleT) -> ModuleT:
    """Return a copy of a tree of modules, with the same weights; submodules that are replaced later
    stay in the copy.
    """
    outline = copy.copy(module)
    outline._modules = {
        name: None if child is None else outline_of(child)
        for name, child in module._modules.items()
    }
    return outline
