"""Reads .safetensors files of strangers within limits: the header once, then single tensors.

Used instead of the package's own functions, which look up all names anew for every tensor in the
version that the WebUI pins, and whose `load_file` a host may have replaced by one that renames what
fails to load. Foreign files are read by this module, `safetensors.safe_open` and
`safetensors.torch.load` alone.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from .json_types import JsonObject

MOST_HEADER_BYTES = 10_000_000
MOST_TENSORS = 20_000  # five times what a LoRA of every layer of SDXL has
MOST_PARTS = 250_000  # lists and mappings in a JSON text
MOST_VALUES = 2_000_000
_LENGTH_BYTES = 8


class _Dtype(NamedTuple):
    """A dtype of the format: bytes of an item, and torch's dtype, None for one that is not read."""

    item_bytes: int
    torch_dtype: torch.dtype | None


_DTYPES = {
    "F64": _Dtype(8, torch.float64),
    "F32": _Dtype(4, torch.float32),
    "F16": _Dtype(2, torch.float16),
    "BF16": _Dtype(2, torch.bfloat16),
    "I64": _Dtype(8, torch.int64),
    "I32": _Dtype(4, torch.int32),
    "I16": _Dtype(2, torch.int16),
    "I8": _Dtype(1, torch.int8),
    "U8": _Dtype(1, torch.uint8),
    "BOOL": _Dtype(1, torch.bool),
    "F8_E4M3": _Dtype(1, None),
    "F8_E5M2": _Dtype(1, None),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor is: its dtype as the format names it, its shape, and its bytes, which are
    counted from the end of the header; `end` is exclusive.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What stands before the tensors, in `data_begins` bytes."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    data_begins: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}


def read_header(path: Path) -> Header:
    """Read a complete file's header; again only when the file has changed.

    Raises OSError, and ValueError with the reason for a file that is damaged, of another kind or
    beyond the limits.
    """
    stat = Path(path).stat()
    return _read_header(str(path), stat.st_size, stat.st_mtime_ns)


def check_json(text: bytes | str) -> None:
    """Raise ValueError for a JSON text that would take seconds to parse, by its brackets, braces
    and commas, those in strings included.
    """
    if isinstance(text, bytes):
        lists, mappings, values = text.count(b"["), text.count(b"{"), text.count(b",")
    else:
        lists, mappings, values = text.count("["), text.count("{"), text.count(",")
    if lists + mappings > MOST_PARTS or values > MOST_VALUES:
        raise ValueError(
            f"it holds {lists + mappings:,} lists and mappings and {values:,} values, "
            f"more than {MOST_PARTS:,} or {MOST_VALUES:,}"
        )


def parse_header(file: BinaryIO, *, file_bytes: int | None = None) -> Header:
    """Parse the header of an open file. Without `file_bytes` the data need not be there.

    Raises ValueError as `read_header`.
    """
    start = file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or not length >= 2 or (file_bytes or length) < length:
        raise ValueError("it is no safetensors file, or cut off")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes; at most {MOST_HEADER_BYTES:,} are read")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("it is cut off")
    check_json(text)
    values = _json(text)
    metadata = values.pop("__metadata__", None) or {}
    if len(values) > MOST_TENSORS:
        raise ValueError(f"it holds {len(values):,} tensors; at most {MOST_TENSORS:,} are read")
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no list of names and texts")
    entries = {name: _entry(name, value) for name, value in values.items()}
    if file_bytes is not None:
        _check_places(entries, file_bytes - _LENGTH_BYTES - length)
    return Header(
        {str(key): str(value) for key, value in metadata.items()}, entries, _LENGTH_BYTES + length
    )


def read_tensor(file: BinaryIO, header: Header, name: str) -> torch.Tensor:
    """Read one tensor of an open file; raises ValueError for an 8-bit float dtype."""
    entry = header.entries[name]
    dtype = _DTYPES[entry.dtype].torch_dtype
    if dtype is None:
        raise ValueError(f"{name} is of the type {entry.dtype}, which is not read")
    file.seek(header.data_begins + entry.begin)
    data = bytearray(file.read(entry.end - entry.begin))
    if len(data) != entry.end - entry.begin:
        raise ValueError("it is cut off")
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(entry.shape)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a complete file, on the CPU; raises OSError and ValueError as
    `read_header` and `read_tensor`.
    """
    header = read_header(path)
    with open(path, "rb") as file:
        return {name: read_tensor(file, header, name) for name in header.entries}


@functools.lru_cache(maxsize=16)
def _read_header(path: str, size_bytes: int, changed_ns: int) -> Header:
    with open(path, "rb") as file:
        return parse_header(file, file_bytes=size_bytes)


def _json(text: bytes) -> JsonObject:
    try:
        values = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("its header cannot be understood") from error
    if not isinstance(values, dict):
        raise ValueError("its header cannot be understood")
    return values


def _entry(name: str, value: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"its header does not say where {name[:80]} is") from error
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) > 8:
        raise ValueError(f"its header does not say where {name[:80]} is")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{name[:80]} is of the type {str(dtype)[:20]}, which is not read")
    if end - begin != math.prod(shape) * _DTYPES[dtype].item_bytes:
        raise ValueError(f"{name[:80]} has not as many bytes as its shape needs")
    return Entry(dtype, tuple(shape), begin, end)


def _check_places(entries: Mapping[str, Entry], data_bytes: int) -> None:
    """Raise ValueError unless the tensors follow each other and fill the file."""
    places = sorted((entry.begin, entry.end) for entry in entries.values())
    ends = [0, *(end for _, end in places)]
    if any(begin != end for (begin, _), end in zip(places, ends, strict=False)):
        raise ValueError("its tensors overlap or have gaps between them")
    if ends[-1] != data_bytes:
        raise ValueError(f"it has {data_bytes:,} bytes of tensors instead of {ends[-1]:,}")
