"""What is in a checkpoint file: names, dtypes, shapes and places of tensors, before any of them is read.

Unusual: files are untrusted. The header of a safetensors file is checked here, more strictly than the library does (it
lets the last of two equal names win); a pickle runs no code, and TorchScript archives are read as data.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from .torchscript import is_torchscript, load_torchscript_state_dict

__all__ = [
    "PICKLES",
    "StoredTensor",
    "as_tensor",
    "choose_weights",
    "find_files",
    "header_length",
    "join_shards",
    "open_file",
    "parse_header",
    "read_index",
]

PICKLES = (".pth", ".pt", ".bin")
USUAL = ("model.safetensors", "pytorch_model.bin")
# What trainers write beside weights, and where in a pickle they put them.
NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")
NESTS = ("state_dict", "model_state_dict", "model", "module")
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
LARGEST_HEADER = 100_000_000  # bytes; the library's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read.

    Args:
        shape: its sides.
        dtype: None for one that torch has no name for.
        start: place of its first byte in the file, where the file is a safetensors file.
        end: place after its last byte.
        read: reads it; None for one that is not on this machine.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    start: int = 0
    end: int = 0
    read: Callable[[], torch.Tensor] | None = None


def parse_header(header: bytes, file_size: int, file: str) -> dict[str, StoredTensor]:
    """Read what the header of a safetensors file says.

    Source: the format's description in the safetensors repository.

    Args:
        header: its JSON, without the 8 bytes of length before it.
        file_size: bytes of the whole file.
        file: what to call it in errors.

    Raises:
        `ValueError`: no JSON, a name twice, offsets that overlap, leave a hole or lie outside of the file, or that do
            not fit the shape.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
        return found

    try:
        content = json.loads(header, object_pairs_hook=unique)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        content.pop("__metadata__", None)
        _check_names(content, "it")
        tensors = {name: _parse_entry(name, entry, 8 + len(header)) for name, entry in content.items()}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} has a damaged header: {error}.") from error
    place = 8 + len(header)
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != place:
            what = "overlaps the tensor before it" if tensor.start < place else "leaves a hole before it"
            raise ValueError(f"{file} has a damaged header: {name!r} {what}.")
        place = tensor.end
    if place != file_size:
        raise ValueError(f"{file} has {file_size} bytes, but its header tells of {place}: it is not whole.")
    return tensors


def _parse_entry(name: str, entry: Any, data: int) -> StoredTensor:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape: Any
    offsets: Any
    shape, offsets, dtype_name = (fields.get(field) for field in ("shape", "data_offsets", "dtype"))
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r} has shape {shape!r} and offsets {offsets!r}")
    dtype = DTYPES.get(str(dtype_name))
    size = offsets[1] - offsets[0]
    if dtype is not None and prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name!r} of shape {tuple(shape)} and dtype {dtype_name} cannot have {size} bytes")
    return StoredTensor(tuple(shape), dtype, data + offsets[0], data + offsets[1])


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def header_length(first_bytes: bytes | bytearray, file_size: int, file: str) -> int:
    """Read the length of a safetensors file's header off its first eight bytes.

    Raises:
        `ValueError`: a header longer than the file, or than any real one.
    """
    length = int.from_bytes(first_bytes[:8], "little")
    if len(first_bytes) < 8 or length > min(file_size - 8, LARGEST_HEADER):
        raise ValueError(f"{file} of {file_size} bytes is not a whole safetensors file: its header would not fit.")
    return length


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    file_size = path.stat().st_size
    with open(path, "rb") as file:
        length = header_length(file.read(8), file_size, str(path))
        tensors = parse_header(file.read(length), file_size, str(path))
    return {name: replace(tensor, read=partial(_read, path, tensor)) for name, tensor in tensors.items()}


def _read(path: Path, tensor: StoredTensor) -> torch.Tensor:
    # Read, where the library would map the file: the model must not change when the file does, and mapped pages
    # would be in memory beside what is made of them.
    content = bytearray(tensor.end - tensor.start)
    with open(path, "rb") as file:
        file.seek(tensor.start)
        if file.readinto(content) != len(content):
            raise OSError(f"{path} has become shorter.")
    return as_tensor(content, tensor)


def as_tensor(content: bytearray, tensor: StoredTensor) -> torch.Tensor:
    """Make a tensor of the bytes that a safetensors file has of it; they become its memory."""
    assert tensor.dtype is not None
    flat = torch.frombuffer(content, dtype=tensor.dtype) if content else torch.empty(0, dtype=tensor.dtype)
    return flat.reshape(tensor.shape)


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    try:
        if is_torchscript(path):
            content: Any = load_torchscript_state_dict(path)
        else:
            # Mapped, not read: the encoder may be a small part of it. Files of before torch 1.6 cannot be.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling raises whatever the file makes it raise
        wanted = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|archive wants) (\S+)", str(error))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it wants {wanted[1]}" if wanted else lines[0]
        raise ValueError(f"{path} cannot be read without running its code, or is damaged: {reason}") from error
    while isinstance(content, Mapping):
        inside = [content[name] for name in NESTS if isinstance(content.get(name), Mapping)]
        if not inside:
            break
        content = inside[0]
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no dict of tensors.")
    _check_names(tensors, str(path))
    return {name: _describe(tensor, partial(tensors.__getitem__, name)) for name, tensor in tensors.items()}


def _describe(tensor: torch.Tensor, read: Callable[[], torch.Tensor]) -> StoredTensor:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    return StoredTensor(tuple(tensor.shape) if dense else (), tensor.dtype if dense else None, read=read)


def _check_names(names: Iterable[str], file: str) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{file} has a tensor with a name that is no text: {name!r}.") from error


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Find out what is in a file, by its ending: safetensors, or a pickle.

    Raises:
        `ValueError`: a damaged file, or a pickle that wants to run code.
    """
    return _open_pickle(path) if path.suffix in PICKLES else _open_safetensors(path)


def read_index(index: Path) -> dict[str, str]:
    """Read the index of a sharded checkpoint: for each tensor, the name of its shard.

    Raises:
        `ValueError`: no such thing, or a shard outside of the index's own folder.
    """
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        if not weight_map:
            raise ValueError("it names no shard")
        outside = sorted({shard for shard in weight_map.values() if Path(shard).name != shard or shard == ".."})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of shards: {error!r}.") from error
    if outside:
        raise ValueError(f"{index} names files outside of its folder: {', '.join(outside)}.")
    return weight_map


def choose_weights(names: Iterable[str]) -> list[str]:
    """Choose the files with the weights, of a folder without an index: those of the usual names, if they are there."""
    found = [name for name in names if not name.startswith((".", *NOT_WEIGHTS))]
    for suffix, usual in ((".safetensors", USUAL[0]), *((suffix, USUAL[1]) for suffix in PICKLES)):
        if usual in found and usual.endswith(suffix):
            return [usual]
    for suffix in (".safetensors", *PICKLES):
        chosen = sorted(name for name in found if name.endswith(suffix))
        if chosen:
            return chosen
    return []


def find_files(source: Path) -> tuple[list[Path], dict[str, str]]:
    """Find the files of a checkpoint in a folder, safetensors before pickles, an index before what it does not name.

    Returns:
        the files, and what the index says of them (nothing without one).

    Raises:
        `FileNotFoundError`: there is no such file or folder.
        `ValueError`: no checkpoint, a missing shard, or a damaged index.
    """
    if source.is_file():
        return [source], {}
    if not source.is_dir():
        raise FileNotFoundError(f"source: there is no file or folder {str(source)!r}.")
    for suffix in (".safetensors", *PICKLES):
        for index in sorted(source.glob(f"*{suffix}.index.json")):
            weight_map = read_index(index)
            files = [source / name for name in sorted(set(weight_map.values()))]
            missing = [path.name for path in files if not path.is_file()]
            if missing:
                raise ValueError(f"{index} names shards that are not there: {', '.join(missing)}.")
            return files, weight_map
        names = choose_weights(path.name for path in source.glob(f"*{suffix}") if path.is_file())
        if names:
            return [source / name for name in names], {}
    raise ValueError(f"source: {source} holds neither safetensors nor {', '.join(PICKLES)} files.")


def join_shards(
    shards: Mapping[str, Mapping[str, StoredTensor]], weight_map: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """Put the tensors of all shards together.

    Args:
        shards: for each shard its tensors.
        weight_map: what an index says of them.

    Raises:
        `ValueError`: a tensor in two shards, or not in the one that the index names.
    """
    joined: dict[str, StoredTensor] = {}
    for shard, tensors in shards.items():
        twice = sorted(set(tensors) & set(joined))
        if twice:
            raise ValueError(f"{shard} holds tensors that another shard holds too: {', '.join(twice[:3])}.")
        joined |= tensors
    lost = sorted(name for name, shard in weight_map.items() if name not in shards[shard])
    if lost:
        raise ValueError(f"{weight_map[lost[0]]} lacks tensors that the index says it holds: {', '.join(lost[:3])}.")
    return joined
