"""Checkpoints in pickles: what `torch.save` and `torch.jit.save` write.

Unusual: no code of the file runs, and no function of torch interprets it. Both formats are read as data; see
`data_pickles.py`.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .data_pickles import PickledTensor
from .stored_tensors import StoredTensor, check_names
from .torch_files import open_archive, open_old_file
from .torchscript import is_torchscript, tensors_of_modules

__all__ = ["open_pickle"]

# Keys under which training scripts put the state dict.
NESTED_KEYS = ("state_dict", "model_state_dict", "model", "module")
MOST_NESTS = 10  # A dict may contain itself.


def open_pickle(path: Path) -> dict[str, StoredTensor]:
    """Open a `.pth`, `.pt` or `.bin` file.

    Raises:
        `OSError`: the file cannot be read.
        `ValueError`: the file is damaged, needs its own code to be loaded, or contains no dict of tensors.
    """
    try:
        saved = (open_archive if zipfile.is_zipfile(path) else open_old_file)(path)
        found = tensors_of_modules(saved.content) if is_torchscript(path) else _find_state_dict(saved.content)
        tensors = {name: saved.describe(tensor) for name, tensor in found.items()}
    except OSError:
        raise
    except Exception as error:  # A damaged pickle can raise anything.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is damaged or cannot be read without running its code: {lines[0]}") from error
    if not tensors:
        raise ValueError(f"{path} contains no dict of tensors.")
    check_names(tensors, str(path))
    return tensors


def _find_state_dict(content: Any) -> dict[str, PickledTensor]:
    """Return the tensors of the innermost dict, which training scripts put into others."""
    for _ in range(MOST_NESTS):
        if not isinstance(content, Mapping):
            return {}
        nested = [content[key] for key in NESTED_KEYS if isinstance(content.get(key), Mapping)]
        if not nested:
            return {name: value for name, value in content.items() if isinstance(value, PickledTensor)}
        content = nested[0]
    raise ValueError(f"its state dict is nested in more than {MOST_NESTS} dicts")
