"""Files of tensors that strangers made (.safetensors), read within bounds: the header once, then
single tensors by their place.

The library looks all names up anew for every tensor under the version that the WebUI pins, and a
host may have replaced its `load_file` by a function that renames what fails to load. So nothing but
this file, `safetensors.safe_open` and `safetensors.torch.load` reads a foreign file.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

MOST_HEADER_BYTES = 10_000_000
MOST_TENSORS = 20_000  # five times what a LoRA of every layer of SDXL has
MOST_PARTS = 250_000  # lists and mappings in a JSON text
MOST_VALUES = 2_000_000
_LENGTH_BYTES = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor is: its type in the format's words, its shape, and its bytes from `begin`
    to before `end`, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first part of a file says. `data_begins` is the header's length in bytes."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    data_begins: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}


def read_header(path: Path) -> Header:
    """Read a complete file's header; again only when the file has changed.

    Raises OSError, and ValueError for a file that is damaged, of another kind or beyond the
    bounds, with a phrase that says why.
    """
    facts = Path(path).stat()
    return _read_header(str(path), facts.st_size, facts.st_mtime_ns)


def check_json(text: bytes | str) -> None:
    """Raise ValueError for a JSON text that would take seconds to parse, counting what could be
    in it; what is between quotes counts, too."""
    signs = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
    lists, mappings, values = (text.count(sign) for sign in signs)
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
    """Read one tensor of an open file; raises ValueError for a type that is not computed with."""
    entry = header.entries[name]
    if entry.dtype not in _DTYPES:
        raise ValueError(f"{name} is of the type {entry.dtype}, which is not read")
    file.seek(header.data_begins + entry.begin)
    data = bytearray(file.read(entry.end - entry.begin))
    if len(data) != entry.end - entry.begin:
        raise ValueError("it is cut off")
    flat = torch.frombuffer(data, dtype=_DTYPES[entry.dtype]) if data else torch.empty(0)
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


def _json(text: bytes) -> dict[str, Any]:
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
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{name[:80]} is of the type {str(dtype)[:20]}, which is not read")
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"{name[:80]} has not as many bytes as its shape needs")
    return Entry(dtype, tuple(shape), begin, end)


def _check_places(entries: Mapping[str, Entry], data_bytes: int) -> None:
    """Tensors must lie one after the other and fill the file, as the format wants it."""
    places = sorted((entry.begin, entry.end) for entry in entries.values())
    ends = [0, *(end for _, end in places)]
    if any(begin != end for (begin, _), end in zip(places, ends, strict=False)):
        raise ValueError("its tensors overlap or have gaps between them")
    if ends[-1] != data_bytes:
        raise ValueError(f"it has {data_bytes:,} bytes of tensors instead of {ends[-1]:,}")
