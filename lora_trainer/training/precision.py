"""The precision of a step, and gradient checkpointing, which trades time for memory."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..base.errors import ErrorCode, Refused
from ..base.patching import replaced_forward
from .optimizer_kinds import torch_version

CHECKPOINTED_BLOCKS = (
    "BasicTransformerBlock",  # ldm, sgm, diffusers
    "ResBlock",  # ldm, sgm
    "ResnetBlock2D",  # diffusers
    "CLIPEncoderLayer",  # transformers
    "ResidualAttentionBlock",  # open_clip
)


def resolve(requested: str, *, device: torch.device, weights: torch.dtype) -> torch.dtype:
    """Return the autocast dtype for "auto", "no", "fp16" or "bf16" (float32: no autocast); raises
    `Refused` where it cannot work.
    """
    on_cpu = device.type == "cpu"
    if requested == "auto":
        if weights != torch.float32:  # another type would keep a cast copy of every weight
            return torch.bfloat16 if on_cpu else weights
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if has_bf16(device) else torch.float16
    if requested == "fp16" and on_cpu:
        raise Refused(
            "Precision: fp16 needs a GPU. Use auto, no or bf16 on a CPU.",
            field="mixed_precision",
            code=ErrorCode.BAD_PRECISION,
        )
    if requested == "bf16" and not on_cpu and not has_bf16(device):
        raise Refused(
            "Precision: this GPU has no bf16. Use auto or fp16.",
            field="mixed_precision",
            code=ErrorCode.BAD_PRECISION,
        )
    if requested == "no" and weights != torch.float32:
        raise Refused(
            f"Precision: the base model is loaded as {str(weights).removeprefix('torch.')}, so fp32"
            " steps are impossible. Use auto, or start the WebUI with --no-half.",
            field="mixed_precision",
            code=ErrorCode.BAD_PRECISION,
        )
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[requested]


def safe_attention(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Keep away from torch 2.1's bf16 attention on the CPU, whose backward corrupts the heap.
    Around forward, backward and recomputation.
    """
    if device.type == "cpu" and dtype == torch.bfloat16 and torch_version() < (2, 3):
        return torch.backends.cuda.sdp_kernel(
            enable_flash=False, enable_mem_efficient=False, enable_math=True
        )
    return contextlib.nullcontext()


def grad_scaler(device: torch.device, dtype: torch.dtype) -> "torch.amp.GradScaler":
    """Return a loss scaler, switched on for fp16 only; works across torch 2.1 to the newest."""
    enabled = dtype == torch.float16
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)


@contextlib.contextmanager
def gradient_checkpointing(model: torch.nn.Module, enabled: bool = True) -> Iterator[None]:
    """Recompute each block's activations in the backward pass instead of keeping them.

    Overrides `forward` on the block objects and puts back what they had. Non-reentrant: the models'
    own checkpointing gives frozen weights' adapters no gradient.
    """
    with contextlib.ExitStack() as stack:
        for module in model.modules() if enabled else ():
            if type(module).__name__ in CHECKPOINTED_BLOCKS:
                stack.enter_context(replaced_forward(module, _checkpointed(module.forward)))
        yield


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def free_memory(device: torch.device) -> None:
    """Hand memory that no tensor uses back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 8
