"""Folders of exported graphs, which `deepencoder.runtimes` runs like a model.

Unusual: nothing in the folder says which graphs it holds. Their names do, `view_640.xml`, so that no list can disagree
with the files, and a graph can be added to a folder at any time.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...configuration.atomic_files import new_folder
from .checks import check_exportable
from .exporting import export_model
from .formats import FORMATS

__all__ = ["TOKENS_NAME", "export_folder", "find_graphs", "graph_name"]

TOKENS_NAME = "layout_tokens.safetensors"
"""The file that holds `image_newline` and `view_separator`."""
FINGERPRINT = "fingerprint"  # Key of its metadata.


def graph_name(image_size: int, format: str) -> str:
    """Return the name of the graph for square views of one size."""
    return f"view_{image_size}{FORMATS[format].suffix}"


def find_graphs(folder: Path, format: str) -> dict[int, Path]:
    """Return the graphs of a format in a folder, by the side of their views in pixels, the smallest first."""
    pattern = re.compile(r"view_([1-9]\d{0,4})" + re.escape(FORMATS[format].suffix))
    found = {int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    return dict(sorted(found.items()))


def fingerprint(model: Any) -> str:
    """Return a hash of some values of every weight of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(values[:: max(1, len(values) // 1024)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _write_description(model: Any, folder: Path, image_processor: Any) -> None:
    model.config.save_pretrained(folder)
    tokens = {name: getattr(model, name).detach().float().cpu() for name in ("image_newline", "view_separator")}
    save_file(tokens, folder / TOKENS_NAME, {FINGERPRINT: fingerprint(model)})
    if image_processor is not None:
        image_processor.save_pretrained(folder)


def _check_folder(model: Any, folder: Path) -> None:
    """Raise `ValueError` unless an existing folder holds graphs of this very model."""
    if not (folder / TOKENS_NAME).is_file():
        raise ValueError(f"folder: {folder} exists already, and is not a folder of exported graphs.")
    with safe_open(folder / TOKENS_NAME, "pt") as file:
        if (file.metadata() or {}).get(FINGERPRINT) != fingerprint(model):
            raise ValueError(f"folder: {folder} holds graphs of another model.")


def export_folder(
    model: Any,
    folder: str | Path,
    image_sizes: Sequence[int],
    format: str,
    image_processor: Any = None,
    calibration: Mapping[int, torch.Tensor] | None = None,
    release: bool = False,
) -> dict[int, dict[str, Any]]:
    """Export a [`DeepEncoder`] as a folder that [`ExportedDeepEncoder`] loads, or add graphs to such a folder.

    Args:
        model: the model.
        folder: the folder. A new one appears whole or not at all, and so does each graph in one that exists.
        image_sizes: the sides of the views and tiles, in pixels; each becomes a graph of its own.
        format: `"openvino"` or `"onnx"`.
        image_processor: saved in a new folder.
        calibration (*optional*): for each size, the `calibration` of [`export_model`].
        release (`bool`): free the weights of the model with the last graph; see [`export_model`].

    Returns:
        for each size what [`export_model`] returns.

    Raises:
        `ValueError`: the model is not a [`DeepEncoder`], the folder holds anything but its graphs, or an error of
            [`export_model`].
    """
    model, folder = getattr(model, "_orig_mod", model), Path(folder)
    check_exportable(model)
    if model.config.model_type != "deepencoder":
        raise ValueError(f"A folder of graphs must hold a DeepEncoder, got a {type(model).__name__}.")

    def add_graphs(target: Path) -> dict[int, dict[str, Any]]:
        pages, facts = calibration or {}, {}
        for size in image_sizes:
            options: dict[str, Any] = {"calibration": pages.get(size), "release": release and size == image_sizes[-1]}
            facts[size] = export_model(model, target / graph_name(size, format), size, format, **options)
        return facts

    if folder.exists():
        _check_folder(model, folder)
        return add_graphs(folder)
    with new_folder(folder) as temporary:
        _write_description(model, temporary, image_processor)
        return add_graphs(temporary)
