"""The GGUF format of llama.cpp: its header, and reading single tensors.

Unusual: files are not trusted, and the header of a file on the Hub is read while it is being downloaded. So the header
is parsed here, from bytes of which more can be asked for, with all counts checked before memory is taken. Quantised
tensors are decoded by the gguf package when they are read, one at a time.

Source: the description of the format in ggml's repository, versions 2 and 3.
"""

import struct
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from .stored_tensors import ReadBytes, StoredTensor, check_names, open_by_header

__all__ = ["open_gguf", "read_gguf_header"]

MAGIC = b"GGUF"
LARGEST_HEADER = 2**27  # bytes: that of a large language model with its vocabulary is some megabytes
FIRST_READ = 2**20  # bytes that are read of a header at first; each further read doubles what there is
SHORTEST = 24  # bytes: the magic number, the version and two counts
MOST_TENSORS = 2**20
MOST_AXES = 4  # ggml's own limit
LARGEST_ALIGNMENT = 2**16

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers in the metadata, by their code, as `struct` writes them."""
STRING, ARRAY = 8, 9

PLAIN_TYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
"""Types of tensors that are a dtype of torch, by their code."""


class _IncompleteError(Exception):
    """The header goes on behind the bytes that there are."""


class _Header:
    """The bytes of a header, read from the front."""

    def __init__(self, content: bytes) -> None:
        self.content, self.position = memoryview(content), 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > LARGEST_HEADER:
            raise ValueError(f"its header has more than {LARGEST_HEADER} bytes")
        if end > len(self.content):
            raise _IncompleteError
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))
        return value

    def string(self) -> str:
        try:
            return bytes(self.take(self.number("Q"))).decode()
        except UnicodeDecodeError as error:
            raise ValueError("a name in it is not valid UTF-8") from error

    def value(self, kind: int) -> Any:
        """Take a value of the metadata. Arrays are passed over, and are returned as None."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.number("I"), self.number("Q")
            if element in NUMBERS:
                self.take(count * struct.calcsize(f"<{NUMBERS[element]}"))
                return None
            if element != STRING:
                raise ValueError(f"it has an array of type {element}")
            for _ in range(count):  # It ends with the bytes at the latest.
                self.take(self.number("Q"))
            return None
        if kind not in NUMBERS:
            raise ValueError(f"it has a value of type {kind}")
        return self.number(NUMBERS[kind])


def _parse_header(content: bytes, file_size: int) -> dict[str, StoredTensor]:
    """Parse a header.

    Raises:
        `_IncompleteError`: the header goes on behind `content`.
        `ValueError`: it is damaged, without the name of the file.
    """
    header = _Header(content)
    if bytes(header.take(4)) != MAGIC:
        raise ValueError("it is not a GGUF file")
    version = header.number("I")
    if version not in (2, 3):
        raise ValueError(f"it has version {version} of the format, not 2 or 3; or it is for big-endian machines")
    tensor_count, value_count = header.number("Q"), header.number("Q")
    if tensor_count > MOST_TENSORS:
        raise ValueError(f"it has {tensor_count} tensors")
    alignment = 32
    for _ in range(value_count):
        name, value = header.string(), header.value(header.number("I"))
        if name == "general.alignment":
            alignment = value
    if type(alignment) is not int or not 0 < alignment <= LARGEST_ALIGNMENT:
        raise ValueError(f"general.alignment is {alignment!r:.40}")
    entries = [_take_entry(header) for _ in range(tensor_count)]
    data_start = -(-header.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, code, offset in entries:
        if name in tensors:
            raise ValueError(f"{name!r} occurs twice")
        tensors[name] = _describe(name, shape, code, data_start + offset, file_size)
    check_names(tensors, "it")
    return tensors


def _take_entry(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """Take a tensor's name, shape, type and offset. GGUF writes the fastest axis first."""
    name, axes = header.string(), header.number("I")
    if axes > MOST_AXES:
        raise ValueError(f"{name!r} has {axes} axes")
    sides = [header.number("Q") for _ in range(axes)]
    return name, tuple(reversed(sides)), header.number("I"), header.number("Q")


def _describe(name: str, shape: tuple[int, ...], code: int, start: int, file_size: int) -> StoredTensor:
    plain = PLAIN_TYPES.get(code)
    if plain is not None:
        size, dtype, decode = prod(shape) * plain.itemsize, plain, None
    else:
        found = _quantized_size(name, shape, code)
        if found is None:  # Of a type that is unknown here, so that nobody can say where it ends.
            return StoredTensor(shape, None, start, start)
        size, dtype, decode = found, torch.float32, partial(_dequantize, shape, code)
    if start + size > file_size:
        raise ValueError(f"{name!r} lies outside of the file, which is incomplete")
    return StoredTensor(shape, dtype, start, start + size, decode=decode)


def _quantized_size(name: str, shape: tuple[int, ...], code: int) -> int | None:
    """Return the bytes of a quantised tensor, or None for a type that cannot be decoded here."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise ImportError(f'{name} is quantised, which needs gguf: pip install "deepencoder[gguf]"') from error
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(code)]
    except (ValueError, KeyError):
        return None
    if block == 1:  # Integers.
        return None
    if not shape or shape[-1] % block:
        raise ValueError(f"{name!r} of shape {shape} cannot be cut into blocks of {block} numbers")
    return prod(shape) // block * block_bytes


def _dequantize(shape: tuple[int, ...], code: int, content: bytearray) -> torch.Tensor:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.frombuffer(content, np.uint8).reshape(*shape[:-1], -1)
    return torch.from_numpy(dequantize(rows, GGMLQuantizationType(code))).reshape(shape)


def read_gguf_header(read: ReadBytes, label: str) -> dict[str, StoredTensor]:
    """Read and check the header of a GGUF file.

    Args:
        read: reads a range of the file; see [`ReadBytes`].
        label: how error messages name the file.

    Raises:
        `ValueError`: the header is damaged or too large, or describes tensors outside of the file.
        `ImportError`: the file has quantised tensors, and gguf is not installed.
    """
    start, file_size = read(0, SHORTEST)
    content, length = bytearray(start), min(FIRST_READ, file_size)
    try:
        while True:
            if length > len(content):
                content += read(len(content), length)[0]
            try:
                return _parse_header(bytes(content), file_size)
            except _IncompleteError:
                if len(content) >= file_size:
                    raise ValueError("it ends within its header") from None
                length = min(2 * len(content), file_size)
    except ValueError as error:
        raise ValueError(f"{label} has a damaged header: {str(error).removesuffix('.')}.") from error


def open_gguf(path: Path) -> dict[str, StoredTensor]:
    """Read the header of a GGUF file.

    Raises:
        `ValueError`, `ImportError`: see [`read_gguf_header`].
    """
    return open_by_header(path, read_gguf_header)
