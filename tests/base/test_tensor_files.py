"""Headers and tensors of foreign files: the library's own numbers, within bounds, and in time."""

import io
import json
import os
import time

import pytest
import torch
from safetensors.torch import save

from lora_trainer.base import tensor_files
from lora_trainer.base.tensor_files import parse_header, read_header, read_tensor, read_tensors

TENSORS = {
    "a.weight": torch.randn(3, 5),
    "b": torch.randn(2, 2, 1, 1).half(),
    "c": torch.tensor(4.0),
    "d": torch.randn(7).bfloat16(),
    "e": torch.arange(6).reshape(2, 3),
    "f": torch.zeros(0, 4),
    "g": torch.randn(2, dtype=torch.float64),
}


def written(path, tensors=None, metadata=None):
    path.write_bytes(save(TENSORS if tensors is None else tensors, metadata))
    return path


def with_header(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_what_the_library_wrote_is_read(tmp_path):
    path = written(tmp_path / "x.safetensors", metadata={"ss_note": "née"})
    header = read_header(path)
    assert header.metadata == {"ss_note": "née"}
    assert header.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    with open(path, "rb") as file:
        for name, tensor in TENSORS.items():
            found = read_tensor(file, header, name)
            assert found.shape == tensor.shape and torch.equal(found.to(tensor.dtype), tensor)
    assert {
        name: tensor.dtype for name, tensor in read_tensors(path).items() if tensor.numel()
    } == {name: tensor.dtype for name, tensor in TENSORS.items() if tensor.numel()}


def test_a_header_is_read_once_and_again_when_the_file_changed(tmp_path):
    path = written(tmp_path / "x.safetensors")
    assert read_header(path) is read_header(path)
    written(path, {"other": torch.zeros(2)})
    os.utime(path, ns=(1, 1))
    assert list(read_header(path).entries) == ["other"]


WHOLE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "data, said",
    [
        (b"hello", "no safetensors file"),
        (with_header(WHOLE, b"1234"), "4 bytes of tensors instead of 8"),
        (with_header(WHOLE, b"0" * 12), "12 bytes of tensors instead of 8"),
        (with_header(WHOLE, b"0" * 8, length=2**62), "no safetensors file, or cut off"),
        (with_header(b"{" + b" " * tensor_files.MOST_HEADER_BYTES + b"}"), "at most 10,000,000"),
        (with_header(b"[" * 100_000), "cannot be understood"),
        (
            with_header(b'{"a": ' + b"9" * 10_000 + b"}"),
            "cannot be understood|does not say where a",
        ),
        (with_header([1, 2]), "cannot be understood"),
        (with_header({"a": 5}), "does not say where a is"),
        (with_header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}), "where a is"),
        (
            with_header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}),
            "where a is",
        ),
        (
            with_header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"0" * 8),
            "bytes",
        ),
        (with_header({"a": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]}}, b"0" * 8), "Q4"),
        (with_header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}), "not read"),
        (
            with_header(
                {**WHOLE, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"0" * 12
            ),
            "overlap",
        ),
        (
            with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"0" * 12),
            "gap",
        ),
        (with_header({"__metadata__": [1]}), "metadata"),
        (with_header(b'{"a": [' + b"[]," * 3_000_000 + b"[]]}"), "3,000,003 lists"),
        (with_header(b'{"a": [' + b"0," * 4_000_000 + b"0]}"), "4,000,000 values"),
    ],
    ids=range(19),
)
def test_what_is_damaged_or_out_of_bounds_says_why(tmp_path, data, said):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    began = time.monotonic()
    with pytest.raises(ValueError, match=said):
        read_header(path)
    assert time.monotonic() - began < 1


def test_the_number_of_tensors_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "MOST_TENSORS", 6)
    with pytest.raises(ValueError, match="it holds 7 tensors; at most 6 are read"):
        read_header(written(tmp_path / "x.safetensors"))


def test_a_header_alone_will_do_where_nothing_else_was_sent():
    data = save(TENSORS)
    length = 8 + int.from_bytes(data[:8], "little")
    assert parse_header(io.BytesIO(data[:length])).shapes.keys() == TENSORS.keys()
    with pytest.raises(ValueError, match="cut off"):
        parse_header(io.BytesIO(data[: length - 1]))


def test_a_type_that_is_not_computed_with_is_not_read():
    data = with_header({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"00")
    file = io.BytesIO(data)
    header = parse_header(file, file_bytes=len(data))
    with pytest.raises(ValueError, match="F8_E4M3"):
        read_tensor(file, header, "a")


def test_an_empty_tensor_keeps_its_type(tmp_path):
    data = save({"a": torch.empty(0, 3, dtype=torch.float16)})
    (tmp_path / "a.safetensors").write_bytes(data)
    found = read_tensors(tmp_path / "a.safetensors")["a"]
    assert found.dtype == torch.float16 and found.shape == (0, 3)
