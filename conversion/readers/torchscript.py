"""Tensors of TorchScript archives, the format in which OpenAI's CLIP was published.

Unusual: an archive is read as data. `torch.jit.load` would compile the code in it, and `torch.load` refuses it. The
classes of the archive become placeholders, and the tensors are collected from the tree of placeholders.
"""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .data_pickles import PickledTensor, Placeholder

__all__ = ["is_torchscript", "tensors_of_modules"]


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, which is a zip archive that contains code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any("/code/" in name for name in names) and any(name.endswith("/constants.pkl") for name in names)


def _walk(module: Placeholder, prefix: str, seen: set[int]) -> Iterator[tuple[str, PickledTensor]]:
    """Yield the names and tensors of a module and of the modules in it. Cycles are visited once."""
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, PickledTensor):
            yield prefix + name, value
        elif isinstance(value, Placeholder):
            yield from _walk(value, f"{prefix}{name}.", seen)


def tensors_of_modules(root: Any) -> dict[str, PickledTensor]:
    """Return the tensors of a TorchScript archive, by their names in its modules.

    Raises:
        `pickle.UnpicklingError`: the archive contains no module, or two tensors of the same name.
    """
    if not isinstance(root, Placeholder):
        raise pickle.UnpicklingError("the archive contains no module")
    tensors: dict[str, PickledTensor] = {}
    for name, tensor in _walk(root, "", set()):
        if name in tensors:
            raise pickle.UnpicklingError(f"the archive contains two tensors {name!r}")
        tensors[name] = tensor
    return tensors
