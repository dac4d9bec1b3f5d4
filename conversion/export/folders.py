"""Folders of exported graphs, which `deepencoder.runtimes` runs like a model.

Unusual: nothing in the folder says which graphs it holds. Their names do, `view_640.xml`, so that no list can disagree
with the files, and a graph can be added to a folder at any time.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME

from ...configuration.atomic_files import replaced_file, write_text
from .checks import check_exportable
from .exporting import export_model
from .formats import FORMATS

__all__ = ["TOKENS_NAME", "export_folder", "find_graphs", "graph_name"]

TOKENS_NAME = "layout_tokens.safetensors"
"""The file that holds `image_newline` and `view_separator`."""


def graph_name(image_size: int, format: str) -> str:
    """Return the name of the graph for square views of one size."""
    return f"view_{image_size}{FORMATS[format].suffix}"


def find_graphs(folder: Path, format: str) -> dict[int, Path]:
    """Return the graphs of a format in a folder, by the side of their views in pixels, the smallest first."""
    pattern = re.compile(r"view_([1-9]\d{0,4})" + re.escape(FORMATS[format].suffix))
    found = {int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    return dict(sorted(found.items()))


def _write_description(model: Any, folder: Path, image_processor: Any) -> None:
    write_text(folder / CONFIG_NAME, model.config.to_json_string(use_diff=False))
    tokens = {name: getattr(model, name).detach().float().cpu() for name in ("image_newline", "view_separator")}
    with replaced_file(folder / TOKENS_NAME) as temporary:
        save_file(tokens, temporary)
    if image_processor is not None:
        image_processor.save_pretrained(folder)


def export_folder(
    model: Any,
    folder: str | Path,
    image_sizes: Sequence[int],
    format: str,
    image_processor: Any = None,
    calibration: Mapping[int, torch.Tensor] | None = None,
) -> dict[int, dict[str, Any]]:
    """Export a [`DeepEncoder`] as a folder that [`ExportedDeepEncoder`] loads, or add graphs to such a folder.

    Args:
        model: the model.
        folder: the folder, which is created if it does not exist. Each graph in it appears whole or not at all.
        image_sizes: the sides of the views and tiles, in pixels; each becomes a graph of its own.
        format: `"openvino"` or `"onnx"`.
        image_processor: saved beside the graphs.
        calibration (*optional*): for each size, the `calibration` of [`export_model`].

    Returns:
        for each size what [`export_model`] returns.

    Raises:
        `ValueError`: the model is not a [`DeepEncoder`], or an error of [`export_model`].
    """
    model, folder = getattr(model, "_orig_mod", model), Path(folder)
    check_exportable(model)
    if model.config.model_type != "deepencoder":
        raise ValueError(f"A folder of graphs must hold a DeepEncoder, got a {type(model).__name__}.")
    facts = {}
    for size in image_sizes:
        pages = None if calibration is None else calibration[size]
        facts[size] = export_model(model, folder / graph_name(size, format), size, format, calibration=pages)
    _write_description(model, folder, image_processor)
    return facts
