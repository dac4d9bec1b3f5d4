"""Tensors of a checkpoint file that are known by name, dtype and shape before any of them is read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

__all__ = [
    "LONGEST_NAME",
    "MOST_AXES",
    "ReadBytes",
    "StoredTensor",
    "as_tensor",
    "check_names",
    "join_shards",
    "open_by_header",
]

LONGEST_NAME = 1000  # characters
MOST_AXES = 64  # torch's own limit

ReadBytes = Callable[[int, int], tuple[bytes | bytearray, int]]
"""Reads the bytes of a file from one offset to another, or to the file's end; returns them and the file's size."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet.

    Args:
        shape: its shape.
        dtype: its dtype; None if torch has no equivalent.
        start: offset of its first byte in the file. Only safetensors and GGUF files set it.
        end: offset after its last byte.
        read: a function that reads the tensor; None for a tensor that has not been downloaded.
        decode: makes the tensor from its bytes in the file; None if these are its values.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    start: int = 0
    end: int = 0
    read: Callable[[], torch.Tensor] | None = None
    decode: Callable[[bytearray], torch.Tensor] | None = None


def as_tensor(content: bytearray, tensor: StoredTensor) -> torch.Tensor:
    """Return the tensor whose bytes in its file are `content`. It shares their memory unless it is decoded."""
    assert tensor.dtype is not None
    if tensor.decode is not None:
        return tensor.decode(content)
    flat = torch.frombuffer(content, dtype=tensor.dtype) if content else torch.empty(0, dtype=tensor.dtype)
    return flat.reshape(tensor.shape)


def _read_stored(path: Path, tensor: StoredTensor) -> torch.Tensor:
    """Read a tensor from its bytes in a file.

    The bytes are read and not mapped, as the libraries would do: the model must not change when the file does, and
    mapped pages would take memory beside the tensors that are made from them.

    Raises:
        `OSError`: the file ends too early.
    """
    content = bytearray(tensor.end - tensor.start)
    with open(path, "rb") as file:
        file.seek(tensor.start)
        if file.readinto(content) != len(content):
            raise OSError(f"{path} became shorter while it was read.")
    return as_tensor(content, tensor)


def open_by_header(
    path: Path, read_header: Callable[[ReadBytes, str], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """Find the tensors of a file by its header, each of which is read from its bytes when it is asked for.

    Args:
        path: the file.
        read_header: reads the header, given [`ReadBytes`] and the name of the file for error messages.
    """
    file_size = path.stat().st_size

    def read(start: int, end: int) -> tuple[bytes, int]:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(end - start), file_size

    tensors = read_header(read, str(path))
    return {name: replace(tensor, read=partial(_read_stored, path, tensor)) for name, tensor in tensors.items()}


def check_names(names: Iterable[str], file: str) -> None:
    """Check that tensor names can be encoded as UTF-8 and are not too long.

    Raises:
        `ValueError`: a name contains a lone surrogate, or has more than 1,000 characters.
    """
    for name in names:
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{file} has a tensor whose name has {len(name)} characters: {name[:50]!r}...")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{file} has a tensor whose name is not valid Unicode: {name!r}.") from error


def join_shards(
    shards: Mapping[str, Mapping[str, StoredTensor]], weight_map: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """Merge the tensors of all shards of a checkpoint.

    Args:
        shards: for each shard its tensors.
        weight_map: for each tensor the shard that holds it according to the index; empty without an index.

    Raises:
        `ValueError`: two shards hold a tensor of the same name, or a shard lacks a tensor that the index lists for it.
    """
    joined: dict[str, StoredTensor] = {}
    for shard, tensors in shards.items():
        duplicates = sorted(set(tensors) & set(joined))
        if duplicates:
            raise ValueError(f"{shard} contains tensors that are also in another shard: {', '.join(duplicates[:3])}.")
        joined |= tensors
    missing = sorted(name for name, shard in weight_map.items() if name not in shards[shard])
    if missing:
        raise ValueError(f"{weight_map[missing[0]]} lacks tensors that its index lists: {', '.join(missing[:3])}.")
    return joined
