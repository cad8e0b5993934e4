"""How a step is computed, and the ladders that a run climbs down when memory or numbers fail it.

Every rung gives the same LoRA up to rounding: a batch is drawn whole and only computed in portions.
Only what dropouts leave out is drawn for each portion, so with them another LoRA comes of it, as
good.
"""

import dataclasses
import re
from typing import Any

import torch

_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|alloc_failed|cudaerrormemoryallocation",
    re.IGNORECASE,
)
_ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]i?B)?", re.IGNORECASE)
_FREE = re.compile(r"of which ([\d.]+ [KMGT]i?B) is free", re.IGNORECASE)


# What training states on disk call a field.
_IN_STATE = {"micro_batch_size": "at_once", "offload_encoders": "encoders_aside"}


@dataclasses.dataclass(frozen=True)
class ComputeMode:
    """How a step is computed: in which `dtype`, and what it does to need less memory.

    `micro_batch_size` is how many pictures go through the UNet together, 0 for the whole batch.
    """

    dtype: torch.dtype
    gradient_checkpointing: bool = False
    micro_batch_size: int = 0
    offload_encoders: bool = False  # VAE and text encoders wait off the device

    def overrides(self, chosen: "ComputeMode") -> dict[str, Any]:
        """Return what trouble has changed in a run, as plain values in the names of a training
        state: where this differs from what was chosen.
        """
        changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(chosen, field.name)
        }
        return {
            _IN_STATE.get(name, name): (
                str(value).removeprefix("torch.") if name == "dtype" else value
            )
            for name, value in changed.items()
        }

    def with_overrides(self, values: dict[str, Any], weights: torch.dtype) -> "ComputeMode":
        """Return this with the `overrides` of the run before; float32 is left out where the weights
        are not float32.
        """
        known = {name: values[key] for name, key in self._keys().items() if key in values}
        if "dtype" in known:
            known["dtype"] = getattr(torch, known["dtype"])
        if known.get("dtype") == torch.float32 != weights:
            del known["dtype"]
        return dataclasses.replace(self, **known)

    def _keys(self) -> dict[str, str]:
        return {
            field.name: _IN_STATE.get(field.name, field.name) for field in dataclasses.fields(self)
        }


def with_less_memory(
    compute_mode: ComputeMode, batch_size: int, *, needs_encoders: bool = False
) -> tuple[ComputeMode, str] | None:
    """Return the next rung down and how to call it, or None at the bottom. `needs_encoders`:
    captions are encoded within the steps.
    """
    if not compute_mode.gradient_checkpointing:
        return dataclasses.replace(
            compute_mode, gradient_checkpointing=True
        ), "gradient checkpointing"
    micro_batch_size = compute_mode.micro_batch_size or batch_size
    if micro_batch_size > 1:
        half = -(-micro_batch_size // 2)
        return dataclasses.replace(
            compute_mode, micro_batch_size=half
        ), f"{half} of {batch_size} pictures at once"
    if not compute_mode.offload_encoders and not needs_encoders:
        return (
            dataclasses.replace(compute_mode, offload_encoders=True),
            "the VAE and the text encoder set aside",
        )
    return None


def with_safer_numbers(
    compute_mode: ComputeMode, weights: torch.dtype, *, has_bf16: bool
) -> tuple[ComputeMode, str] | None:
    """Return how to compute so that fewer numbers overflow, and how to call it; None when it is
    done so already.

    float32 needs float32 weights. 16-bit weights can only go from float16 to bfloat16, which has
    float32's range.
    """
    safer = (
        torch.float32
        if weights == torch.float32
        else torch.bfloat16
        if has_bf16
        else compute_mode.dtype
    )
    if compute_mode.dtype in (safer, torch.float32):
        return None
    return (
        dataclasses.replace(compute_mode, dtype=safer),
        {torch.float32: "fp32", torch.bfloat16: "bf16"}[safer],
    )


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def describe_out_of_memory(error: BaseException) -> str:
    """Say how much was asked for and how much was there, as far as torch told; e.g. "2.00 GiB were
    needed, 512.00 MiB were free".
    """
    asked, free = _ASKED.search(str(error)), _FREE.search(str(error))
    if not asked:
        return "how much was needed is not known"
    needed = (
        f"{asked[1]} {asked[2]}"
        if asked[2] and asked[2] != "bytes"
        else f"{float(asked[1].rstrip('.')) / 2**20:,.0f} MiB"
    )
    return f"{needed} more were needed" + (f", {free[1]} were free" if free else "")
