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


@dataclasses.dataclass(frozen=True)
class Effort:
    """`dtype` of the computation; `at_once`: pictures that go through the UNet together, 0 for the
    whole batch.
    """

    dtype: torch.dtype
    gradient_checkpointing: bool = False
    at_once: int = 0
    encoders_aside: bool = False  # VAE and text encoders wait off the device

    def beyond(self, chosen: "Effort") -> dict[str, Any]:
        """Return what trouble has forced on a run, as plain values: where this differs from what
        was chosen.
        """
        forced = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(chosen, field.name)
        }
        return {
            name: str(value).removeprefix("torch.") if name == "dtype" else value
            for name, value in forced.items()
        }

    def forced(self, values: dict[str, Any], weights: torch.dtype) -> "Effort":
        """Return this with what was forced on the run before; float32 cannot be forced on weights
        that are not.
        """
        known = {
            **values,
            **({"dtype": getattr(torch, values["dtype"])} if "dtype" in values else {}),
        }
        if known.get("dtype") == torch.float32 != weights:
            del known["dtype"]
        return dataclasses.replace(self, **known)


def with_less_memory(
    effort: Effort, batch_size: int, *, needs_encoders: bool = False
) -> tuple[Effort, str] | None:
    """Return the next rung down and how to call it, or None at the bottom. `needs_encoders`:
    captions are encoded within the steps.
    """
    if not effort.gradient_checkpointing:
        return dataclasses.replace(effort, gradient_checkpointing=True), "gradient checkpointing"
    at_once = effort.at_once or batch_size
    if at_once > 1:
        half = -(-at_once // 2)
        return dataclasses.replace(effort, at_once=half), f"{half} of {batch_size} pictures at once"
    if not effort.encoders_aside and not needs_encoders:
        return (
            dataclasses.replace(effort, encoders_aside=True),
            "the VAE and the text encoder set aside",
        )
    return None


def with_safer_numbers(
    effort: Effort, weights: torch.dtype, *, has_bf16: bool
) -> tuple[Effort, str] | None:
    """Return how to compute so that fewer numbers overflow, and how to call it; None when it is
    done so already.

    float32 needs float32 weights. 16-bit weights can only go from float16 to bfloat16, which has
    float32's range.
    """
    safer = (
        torch.float32 if weights == torch.float32 else torch.bfloat16 if has_bf16 else effort.dtype
    )
    if effort.dtype in (safer, torch.float32):
        return None
    return (
        dataclasses.replace(effort, dtype=safer),
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
