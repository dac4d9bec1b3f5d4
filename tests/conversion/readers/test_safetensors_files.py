"""safetensors files: headers of every kind of damage, and reading single tensors."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepencoder.conversion.readers.safetensors_files import DTYPES, header_length, open_safetensors

from .refused_files import LFS_POINTER, assert_refused


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(start: int, end: int, shape: str = "[1]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


DAMAGED_HEADERS = {
    "not JSON": (b"{", "damaged header"),
    "not an object": (b"[1]", "not a JSON object"),
    "too deeply nested": (b"[" * 100_000, "damaged header"),
    "without fields": (b'{"a": {}}', "'a' has shape None"),
    "not numbers": (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "shape"),
    "negative sizes": (f'{{"a": {entry(0, 4, "[-1]")}}}'.encode(), "shape"),
    "duplicate names": (f'{{"a": {entry(0, 4)}, "a": {entry(4, 8)}}}'.encode(), "'a' occurs twice"),
    "overlapping tensors": (f'{{"a": {entry(0, 4)}, "b": {entry(2, 6)}}}'.encode(), "'b' overlaps"),
    "gap": (f'{{"a": {entry(0, 4)}, "b": {entry(8, 12)}}}'.encode(), "'b' leaves a gap"),
    "offsets outside the file": (f'{{"a": {entry(0, 4)}, "b": {entry(4, 4000, "[999]")}}}'.encode(), "incomplete"),
    "shape whose product overflows": (
        f'{{"a": {entry(0, 4, "[4294967296, 4294967296]")}}}'.encode(),
        "cannot have 4 bytes",
    ),
    "too many axes": (f'{{"a": {entry(0, 4, str([1] * 65))}}}'.encode(), "'a' has shape"),
    "reversed offsets": (f'{{"a": {entry(4, 0)}}}'.encode(), "offsets"),
    "offsets that do not fit the shape": (f'{{"a": {entry(0, 8, "[3]")}}}'.encode(), r"\(3,\).*8 bytes"),
    "bytes after the last tensor": (f'{{"a": {entry(0, 4)}}}'.encode(), "incomplete or damaged"),
    "name with a lone surrogate": (f'{{"\\ud800": {entry(0, 8, "[2]")}}}'.encode(), "not valid Unicode"),
}


@pytest.mark.parametrize("name", DAMAGED_HEADERS)
def test_damaged_headers_are_refused(name: str, tmp_path: Path) -> None:
    header, pattern = DAMAGED_HEADERS[name]
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, b"12345678"))
    assert_refused(tmp_path, pattern)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(100)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for name, (content, pattern) in {
        "without the last bytes": (whole[:-10], "incomplete or damaged"),
        "ends within the header": (whole[:50], "header does not fit"),
        "length of the header too large": (struct.pack("<Q", 10**9) + b"{}", "header does not fit"),
        "empty": (b"", "header does not fit"),
        "pointer of git-lfs": (LFS_POINTER, "header does not fit"),
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        assert_refused(path, pattern)


def test_the_length_of_a_header_is_limited() -> None:
    assert header_length(struct.pack("<Q", 10), 18, "file") == 10
    for length, file_size in ((11, 18), (100_000_001, 10**12)):
        with pytest.raises(ValueError, match="file is not a safetensors file or is truncated"):
            header_length(struct.pack("<Q", length), file_size, "file")


def test_tensors_of_all_dtypes_are_read(tmp_path: Path) -> None:
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = open_safetensors(tmp_path / "model.safetensors")
    expected = load_file(tmp_path / "model.safetensors")
    assert set(stored) == set(expected)
    for name, tensor in stored.items():
        assert tensor.read is not None
        assert (tensor.shape, tensor.dtype) == (tuple(tensors[name].shape), tensors[name].dtype)
        torch.testing.assert_close(tensor.read(), expected[name], rtol=0, atol=0)


def test_unknown_dtypes_are_described_without_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(f'{{"a": {entry(0, 2, "[4]", "F4")}}}'.encode(), b"12"))
    assert open_safetensors(tmp_path / "model.safetensors")["a"].dtype is None


def test_tensors_do_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    read = open_safetensors(path)["a"].read
    assert read is not None
    tensor = read()
    content = path.read_bytes()
    path.write_bytes(content[:-12] + bytes(12))
    assert torch.equal(tensor, torch.ones(3)) and torch.equal(read(), torch.zeros(3))
    path.write_bytes(content[:-4])
    with pytest.raises(OSError, match="became shorter"):
        read()
