"""Tensors out of TorchScript archives, such as those that OpenAI's CLIP is published in.

Unusual: the archive is read as data. `torch.jit.load` would compile the code in it, and `torch.load` refuses it; here
a pickle machine that knows no class but its own stand-ins walks the tree of modules and collects their tensors.
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
    """Tell whether a file is a TorchScript archive: a zip that holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any("/code/" in name for name in names) and any(name.endswith("/constants.pkl") for name in names)


class _Module:
    """Stands in for any class of the archive's code: keeps attributes, does nothing."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _as_they_are(values: Any, *_: Any) -> Any:
    return values


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        entry = archive.getinfo(f"{folder}/data.pkl")
        if entry.compress_type != zipfile.ZIP_STORED:  # no bomb: torch packs nothing
            raise pickle.UnpicklingError("data.pkl is packed")
        super().__init__(io.BytesIO(archive.read(entry)))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if module == "torch.jit._pickle":
            return _as_they_are  # lists and dicts with a type
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the archive refers to {module}.{name}")
        return known[module, name]

    def persistent_load(self, identifier: Any) -> torch.Tensor:
        _, dtype, key, _, count = identifier
        if key not in self.storages:
            entry = self.archive.getinfo(f"{self.folder}/data/{key}")
            size = count * dtype.itemsize if isinstance(dtype, torch.dtype) else -1
            if entry.file_size != size or entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"storage {key!r} of {entry.file_size} bytes is not as it should be")
            content = bytearray(self.archive.read(entry))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _view(storage: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> torch.Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _walk(module: _Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, torch.Tensor):
            yield prefix + str(name), value
        elif isinstance(value, _Module):
            yield from _walk(value, f"{prefix}{name}.", seen)


def load_torchscript_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Collect the tensors of a TorchScript archive, by the names that its modules had.

    Raises:
        `pickle.UnpicklingError`: it holds something else than modules, tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        root = _Unpickler(archive, folder).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError("the archive holds no module")
    return dict(_walk(root, "", set()))
