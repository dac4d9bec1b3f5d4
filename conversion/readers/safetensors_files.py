"""The safetensors format: its header, and reading single tensors.

Unusual: files are not trusted. The header is checked more strictly than the safetensors library does, which accepts
duplicate names and keeps the last. The same checks serve files whose header alone was downloaded.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import torch

from .stored_tensors import MOST_AXES, ReadBytes, StoredTensor, check_names, open_by_header

__all__ = ["LENGTH_BYTES", "header_length", "open_safetensors", "parse_header", "read_safetensors_header"]

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
LENGTH_BYTES = 8  # A file starts with the length of its header, as a little-endian integer of 64 bits.
LARGEST_HEADER = 100_000_000  # bytes; the safetensors library has the same limit.


def header_length(first_bytes: bytes | bytearray, file_size: int, file: str) -> int:
    """Return the length of a safetensors file's header, given the first eight bytes of the file.

    Raises:
        `ValueError`: the header would be longer than the file or than the format allows.
    """
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if len(first_bytes) < LENGTH_BYTES or length > min(file_size - LENGTH_BYTES, LARGEST_HEADER):
        raise ValueError(
            f"{file} is not a safetensors file or is truncated: its header does not fit into {file_size} bytes."
        )
    return length


def parse_header(header: bytes, file_size: int, file: str) -> dict[str, StoredTensor]:
    """Parse and check the header of a safetensors file.

    Source: the description of the format in the safetensors repository.

    Args:
        header: its JSON, without the eight bytes of length before it.
        file_size: size of the whole file in bytes.
        file: how error messages name the file.

    Raises:
        `ValueError`: the header is not valid JSON, contains a name twice, or has offsets that overlap, leave a gap,
            lie outside the file or do not fit the shape.
    """
    data_start = LENGTH_BYTES + len(header)
    try:
        content = json.loads(header, object_pairs_hook=_without_duplicates)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        content.pop("__metadata__", None)
        check_names(content, "it")
        tensors = {name: _parse_entry(name, entry, data_start) for name, entry in content.items()}
        end = _check_contiguous(tensors, data_start)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} has a damaged header: {str(error).removesuffix('.')}.") from error
    if end != file_size:
        raise ValueError(f"{file} is incomplete or damaged: it has {file_size} bytes, but its header describes {end}.")
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


def _parse_entry(name: str, entry: Any, data_start: int) -> StoredTensor:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape: Any
    offsets: Any
    shape, offsets, dtype_name = (fields.get(field) for field in ("shape", "data_offsets", "dtype"))
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r} has shape {shape!r:.100} and offsets {offsets!r:.100}")
    dtype = DTYPES.get(str(dtype_name))
    size = offsets[1] - offsets[0]
    if dtype is not None and prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name!r} of shape {tuple(shape)} and dtype {dtype_name} cannot have {size} bytes")
    return StoredTensor(tuple(shape), dtype, data_start + offsets[0], data_start + offsets[1])


def _are_counts(numbers: Any) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) <= MOST_AXES
        and all(type(number) is int and number >= 0 for number in numbers)
    )


def _check_contiguous(tensors: dict[str, StoredTensor], data_start: int) -> int:
    """Check that each tensor starts where the one before it ends, and return where the last one ends."""
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            problem = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            raise ValueError(f"{name!r} {problem}")
        position = tensor.end
    return position


def read_safetensors_header(read: ReadBytes, label: str) -> dict[str, StoredTensor]:
    """Read and check the header of a safetensors file.

    Args:
        read: reads a range of the file; see [`ReadBytes`].
        label: how error messages name the file.

    Raises:
        `ValueError`: the header is damaged.
    """
    first_bytes, file_size = read(0, LENGTH_BYTES)
    length = header_length(first_bytes, file_size, label)
    header, _ = read(LENGTH_BYTES, LENGTH_BYTES + length)
    return parse_header(bytes(header), file_size, label)


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file.

    Raises:
        `ValueError`: the file is damaged.
    """
    return open_by_header(path, read_safetensors_header)
