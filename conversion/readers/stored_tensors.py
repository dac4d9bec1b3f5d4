"""Tensors of a checkpoint file that are known by name, dtype and shape before any of them is read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["LONGEST_NAME", "MOST_AXES", "StoredTensor", "as_tensor", "check_names", "join_shards"]

LONGEST_NAME = 1000  # characters
MOST_AXES = 64  # torch's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet.

    Args:
        shape: its shape.
        dtype: its dtype; None if torch has no equivalent.
        start: offset of its first byte in the file. Only safetensors files set it.
        end: offset after its last byte.
        read: a function that reads the tensor; None for a tensor that has not been downloaded.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    start: int = 0
    end: int = 0
    read: Callable[[], torch.Tensor] | None = None


def as_tensor(content: bytearray, tensor: StoredTensor) -> torch.Tensor:
    """Return the tensor whose bytes in a safetensors file are `content`. The tensor shares their memory."""
    assert tensor.dtype is not None
    flat = torch.frombuffer(content, dtype=tensor.dtype) if content else torch.empty(0, dtype=tensor.dtype)
    return flat.reshape(tensor.shape)


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
