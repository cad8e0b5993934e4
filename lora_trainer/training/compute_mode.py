"""How a step is computed, and which modes are tried when memory runs out or numbers overflow.

Every mode gives the same LoRA up to rounding: a batch is drawn whole and only computed in parts.
Dropout alone is drawn for each part, so with it the LoRA is another one, as good.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch

_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|alloc_failed|cudaerrormemoryallocation",
    re.IGNORECASE,
)
_REQUESTED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]i?B)?", re.IGNORECASE)
_FREE = re.compile(r"of which ([\d.]+ [KMGT]i?B) is free", re.IGNORECASE)


ModeOverrides: TypeAlias = Mapping[str, bool | int | str]
"""Fields of a ComputeMode as plain values, under their names in training states."""
# Names of fields in training states on disk, where they differ.
_NAMES_ON_DISK = {"micro_batch_size": "at_once", "offload_encoders": "encoders_aside"}


@dataclasses.dataclass(frozen=True)
class ComputeMode:
    """How a step is computed: its `dtype`, and what is done to need less memory.

    `micro_batch_size` is how many pictures go through the UNet together, 0 for the whole batch.
    """

    dtype: torch.dtype
    gradient_checkpointing: bool = False
    micro_batch_size: int = 0
    offload_encoders: bool = False  # VAE and text encoders wait off the device

    def overrides(self, chosen: "ComputeMode") -> ModeOverrides:
        """Return where this differs from the mode that was chosen, as plain values under their
        names in a training state.
        """
        changed: dict[str, bool | int | str] = {}
        for name in _field_names():
            value = getattr(self, name)
            if value != getattr(chosen, name):
                plain = str(value).removeprefix("torch.") if name == "dtype" else value
                changed[_NAMES_ON_DISK.get(name, name)] = plain
        return changed

    def with_overrides(self, overrides: ModeOverrides, weights: torch.dtype) -> "ComputeMode":
        """Return this with the `overrides` of an earlier part of the run; float32 only where the
        base model's `weights` are float32.
        """
        values: dict[str, Any] = {}  # each of its field's type
        for name in _field_names():
            name_on_disk = _NAMES_ON_DISK.get(name, name)
            if name_on_disk in overrides:
                values[name] = overrides[name_on_disk]
        if "dtype" in values:
            values["dtype"] = getattr(torch, values["dtype"])
        if values.get("dtype") == torch.float32 != weights:
            del values["dtype"]
        return dataclasses.replace(self, **values)


def _field_names() -> list[str]:
    return [field.name for field in dataclasses.fields(ComputeMode)]


class ModeChange(NamedTuple):
    """Another compute mode to try, and what it is called in a sentence for the user."""

    compute_mode: ComputeMode
    description: str


def with_less_memory(
    compute_mode: ComputeMode, batch_size: int, *, needs_encoders: bool = False
) -> ModeChange | None:
    """Return the next mode that needs less memory; None when there is none.

    `needs_encoders`: captions are encoded within the steps, so the encoders have to stay.
    """
    replace = functools.partial(dataclasses.replace, compute_mode)
    if not compute_mode.gradient_checkpointing:
        return ModeChange(replace(gradient_checkpointing=True), "gradient checkpointing")
    micro_batch_size = compute_mode.micro_batch_size or batch_size
    if micro_batch_size > 1:
        half = math.ceil(micro_batch_size / 2)
        return ModeChange(
            replace(micro_batch_size=half), f"{half} of {batch_size} pictures at once"
        )
    if not compute_mode.offload_encoders and not needs_encoders:
        return ModeChange(replace(offload_encoders=True), "the VAE and the text encoder set aside")
    return None


def with_safer_numbers(
    compute_mode: ComputeMode, weights: torch.dtype, *, has_bf16: bool
) -> ModeChange | None:
    """Return the mode in which fewer numbers overflow; None when it is in use already.

    `weights` is the dtype of the base model. float32 needs float32 weights. 16-bit weights can only
    go from float16 to bfloat16, which has float32's range.
    """
    if compute_mode.dtype == torch.float32:
        return None
    if weights == torch.float32:
        return ModeChange(dataclasses.replace(compute_mode, dtype=torch.float32), "fp32")
    if has_bf16 and compute_mode.dtype != torch.bfloat16:
        return ModeChange(dataclasses.replace(compute_mode, dtype=torch.bfloat16), "bf16")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def describe_out_of_memory(error: BaseException) -> str:
    """Say how much was requested and how much was free, as far as torch's message has it: "2.00 GiB
    more were needed, 512.00 MiB were free".
    """
    requested, free = _REQUESTED.search(str(error)), _FREE.search(str(error))
    if not requested:
        return "how much was needed is not known"
    amount, unit = requested.groups()
    if unit and unit != "bytes":
        needed = f"{amount} {unit}"
    else:
        needed = f"{float(amount.rstrip('.')) / 2**20:,.0f} MiB"
    return f"{needed} more were needed" + (f", {free[1]} were free" if free else "")
