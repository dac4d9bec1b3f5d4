"""Tensors of TorchScript archives, the format in which OpenAI's CLIP was published.

Unusual: an archive is read as data. `torch.jit.load` would compile the code in it, and `torch.load` refuses it. The
unpickler of this module replaces every class of the archive by a stand-in, and the tensors are then collected from
the tree of stand-ins.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["is_torchscript", "load_torchscript_state_dict"]

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, which is a zip archive that contains code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any("/code/" in name for name in names) and any(name.endswith("/constants.pkl") for name in names)


class _Module:
    """Stand-in for all classes of the archive's code. It keeps the attributes of an object and does nothing else."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _first_argument(values: Any, *_: Any) -> Any:
    return values


def _rebuild_tensor(
    storage: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> torch.Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


# The only functions and classes that an archive may refer to, besides its own classes and storages.
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """Unpickles `data.pkl` of an archive without calling anything but the functions of this module."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        entry = archive.getinfo(f"{folder}/data.pkl")
        if entry.compress_type != zipfile.ZIP_STORED:  # torch never compresses; this excludes decompression bombs.
            raise pickle.UnpicklingError("data.pkl is compressed")
        super().__init__(io.BytesIO(archive.read(entry)))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle":
            return _first_argument  # Its functions only restore the types of lists and dicts.
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the archive refers to {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, identifier: Any) -> torch.Tensor:
        """Return the storage that a tensor refers to, as a flat tensor."""
        _, dtype, key, _, count = identifier
        if key not in self.storages:
            entry = self.archive.getinfo(f"{self.folder}/data/{key}")
            size = count * dtype.itemsize if isinstance(dtype, torch.dtype) else -1
            if entry.file_size != size or entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"storage {key!r} has an unexpected size of {entry.file_size} bytes")
            content = bytearray(self.archive.read(entry))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _walk(module: _Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and tensors of a module and of the modules in it. Cycles are visited once."""
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, torch.Tensor):
            yield prefix + str(name), value
        elif isinstance(value, _Module):
            yield from _walk(value, f"{prefix}{name}.", seen)


def load_torchscript_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a TorchScript archive, by their names in its modules.

    Raises:
        `pickle.UnpicklingError`: the archive contains objects other than modules, tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        root = _Unpickler(archive, folder).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError("the archive contains no module")
    return dict(_walk(root, "", set()))
