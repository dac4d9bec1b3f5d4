"""Checkpoints in pickles: what `torch.save` and `torch.jit.save` write.

Unusual: no code of the file runs. State dicts are loaded with `weights_only=True`, TorchScript archives are read as
data.
"""

import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .stored_tensors import StoredTensor, check_names
from .torchscript import is_torchscript, load_torchscript_state_dict

__all__ = ["open_pickle"]

# Keys under which training scripts put the state dict.
NESTED_KEYS = ("state_dict", "model_state_dict", "model", "module")


def open_pickle(path: Path) -> dict[str, StoredTensor]:
    """Open a `.pth`, `.pt` or `.bin` file.

    Raises:
        `ValueError`: the file is damaged, needs its own code to be loaded, or contains no dict of tensors.
    """
    content = _load(path)
    while isinstance(content, Mapping):
        nested = [content[key] for key in NESTED_KEYS if isinstance(content.get(key), Mapping)]
        if not nested:
            break
        content = nested[0]
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} contains no dict of tensors.")
    check_names(tensors, str(path))
    return {name: _describe(tensor, partial(tensors.__getitem__, name)) for name, tensor in tensors.items()}


def _load(path: Path) -> Any:
    try:
        if is_torchscript(path):
            return load_torchscript_state_dict(path)
        # The file is mapped where possible, as the encoder may be a small part of it. Files written by torch before
        # version 1.6 are not zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # Unpickling can raise anything.
        refused = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|archive refers to) (\S+)", str(error))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it refers to {refused[1]}" if refused else lines[0]
        raise ValueError(f"{path} is damaged or cannot be read without running its code: {reason}") from error


def _describe(tensor: torch.Tensor, read: Callable[[], torch.Tensor]) -> StoredTensor:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    return StoredTensor(tuple(tensor.shape) if dense else (), tensor.dtype if dense else None, read=read)
