"""Exporting a model as one graph for ONNX Runtime or torch, for pages of one size and batches of any size.

Unusual: the graph is compared with the model before its file gets its name, so a file that exists gives the model's
numbers.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...configuration.atomic_files import full_disk_reported
from ...modeling.catalog import MODELS
from .checks import TOLERANCE, check_exportable, compare
from .formats import FORMATS
from .graphs import GRAPHS, ExportedView, fix_image_size

__all__ = ["describe_layout", "export_model"]


def describe_layout(config: Any, image_size: int) -> dict[str, Any]:
    """Return where the tokens of a square image lie, as plain values that any language can read.

    Args:
        config: a model's configuration.
        image_size: side of the image in pixels.

    Returns:
        `token_grid` (rows and columns of tokens, in row-major order), `token_stride` and `patch_size` (the sides of a
        token and of a patch in pixels), and for a [`DeepEncoder`] `vision_tokens`: the parts of a page's sequence, in
        order, each with what follows each of its rows.
    """
    main = getattr(config, "sam_config", config)
    stride = getattr(main, "total_stride", main.patch_size)
    tokens = -(-image_size // stride)
    layout: dict[str, Any] = {
        "token_grid": [tokens, tokens],
        "token_stride": stride,
        "patch_size": main.patch_size,
    }
    if config.model_type == "deepencoder":
        layout["vision_tokens"] = [
            {"part": "mosaic of tiles", "after_each_row": "image_newline"},
            {"part": "global view", "after_each_row": "image_newline"},
            {"part": "view_separator"},
        ]
    return layout


def _describe(config: Any, shape: tuple[int, ...], tolerance: float) -> dict[str, str]:
    size = ", ".join(map(str, shape))
    return {
        "package": f"deepencoder {__version__}",
        "model_type": config.model_type,
        "image_size": str(shape[-1]),
        "tolerance": str(tolerance),
        "inputs": json.dumps({"pixel_values": f"(batch, {size}), float32: normalised pixels, any batch size"}),
        "outputs": json.dumps(MODELS[config.model_type].exported_outputs),
        "layout": json.dumps(describe_layout(config, shape[-1])),
    }


def _reference(model: Any, view: ExportedView) -> ExportedView:
    """Return what a graph is compared with: the model as it was given if it computes in float32 on the CPU, too."""
    parameter = next(model.parameters())
    plain = parameter.dtype == torch.float32 and parameter.device.type == "cpu" and not model.training
    return ExportedView(model) if plain else view


def export_model(
    model: Any, path: str | Path, image_size: int, format: str = "onnx", tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Export a model as a graph for pages of one size and batches of any size, and compare the two.

    Args:
        model: a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`].
        path: the file, which appears only if the export succeeds. ONNX keeps the weights beside it, in `path` +
            `.data`.
        image_size: side of the pages (or of the tiles), in pixels.
        format: `"onnx"`, or `"torch"` for `torch.export`.
        tolerance: largest difference allowed between the graph and the model.

    Returns:
        The metadata of the file, and `max_difference` from the model (None if onnxruntime is not installed).

    Raises:
        `ValueError`: the format is unknown, the image size is not a multiple of the patch size, or the graph differs.
        `ImportError`: onnx or onnxscript is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}.")
    path, chosen = Path(path), FORMATS[format]
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    check_exportable(model)
    attn_implementation = GRAPHS[model.config.model_type].attn_implementation
    view = ExportedView(fix_image_size(model, image_size, attn_implementation))
    main = getattr(model.config, "sam_config", model.config)
    shape = (main.num_channels, image_size, image_size)
    metadata = _describe(model.config, shape, tolerance) | dict(chosen.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem[:64]}.", suffix=".tmp")
    with temporary as folder, full_disk_reported(path):
        run = chosen.write(view, shape, Path(folder) / path.name, metadata)
        difference = None if run is None else compare(_reference(model, view), run, shape, tolerance)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # The graph comes last.
            os.replace(file, path.parent / file.name)
    return {**metadata, "max_difference": difference}
