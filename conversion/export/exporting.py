"""Exporting a model as one graph for ONNX Runtime or torch, for pages of one size and batches of any size.

Unusual: the graph is compared with the model before its file gets its name, so a file that exists gives the model's
numbers.
"""

import gc
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...configuration.atomic_files import full_disk_reported
from ...modeling.catalog import MODELS
from .checks import TOLERANCE, check_exportable, compare, make_page
from .compression import measure_accuracy, split_calibration
from .formats import FORMATS, GraphFormat
from .graphs import GRAPHS, ExportedView, fix_image_size

__all__ = ["EXPORT_VERSION", "describe_layout", "export_model"]

EXPORT_VERSION = 1
"""Changes with what a graph computes or how fast, so that graphs in the cache are made again."""


def describe_layout(config: Any, image_size: int) -> dict[str, Any]:
    """Return where the tokens of a square image lie, as plain values that any language can read.

    Args:
        config: a model's configuration.
        image_size: side of the image in pixels.

    Returns:
        `token_grid` (rows and columns of tokens, in row-major order), `token_stride` and `patch_size` (the sides of a
        token and of a patch in pixels), and for a [`DeepEncoder`] `vision_tokens`: the parts of a page's sequence, in
        order, each with what follows each of its rows. A [`DeepEncoderV2`] has a number of `queries` and no grid.
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
    if config.model_type == "deepencoder_v2":
        del layout["token_grid"]  # A query is no cell of the page.
        layout["queries"] = tokens**2
        layout["vision_tokens"] = [
            {"part": "queries of each tile"},
            {"part": "queries of the global view"},
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


def _compress(
    graph: Any, chosen: GraphFormat, reference: ExportedView, calibration: torch.Tensor, shape: tuple[int, ...]
) -> tuple[Any, dict[str, str]]:
    """Quantise a graph; return it, and the metadata that say with what, and how close it is to the model."""
    assert chosen.compress is not None
    pages, held_back = split_calibration(calibration, shape)
    graph = chosen.compress(graph, pages)
    accuracy = measure_accuracy(reference, chosen.open(graph), held_back)
    facts = {"method": "int8", "calibration_pages": len(pages), "compared_pages": len(held_back), **accuracy}
    return graph, {"compression": json.dumps(facts)}


@contextmanager
def _moved_into_place(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; the files that are written there move beside `path` in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem[:64]}.", suffix=".tmp")
    with temporary as folder, full_disk_reported(path):
        yield Path(folder) / path.name
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # The graph comes last.
            os.replace(file, path.parent / file.name)


def _check_arguments(model: Any, format: str, calibration: torch.Tensor | None) -> GraphFormat:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}.")
    chosen = FORMATS[format]
    if calibration is not None and chosen.compress is None:
        raise ValueError("calibration must be None: only OpenVINO graphs are compressed to 8 bits.")
    check_exportable(model)
    return chosen


def export_model(
    model: Any,
    path: str | Path,
    image_size: int,
    format: str = "onnx",
    tolerance: float = TOLERANCE,
    calibration: torch.Tensor | None = None,
    release: bool = False,
) -> dict[str, Any]:
    """Export a model as a graph for pages of one size and batches of any size, and compare the two.

    Args:
        model: a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`].
        path: the file, which appears only if the export succeeds. ONNX keeps the weights beside it, in `path` +
            `.data`, and OpenVINO in a file of the suffix `.bin`.
        image_size: side of the pages (or of the tiles), in pixels.
        format: `"onnx"`, `"openvino"`, or `"torch"` for `torch.export`.
        tolerance: largest difference allowed between the graph and the model. It does not apply to 8 bits.
        calibration (`torch.Tensor` of shape `(pages, channels, image_size, image_size)`, *optional*): normalised
            pixels of two or more pages, with which an OpenVINO graph is quantised to 8 bits. A fifth of them is held
            back to measure the accuracy.
        release (`bool`): free the weights of the model once they are written, so that the comparison needs no memory
            beside them. The model cannot be used afterwards.

    Returns:
        The metadata of the file, and `max_difference` from the model (None if onnxruntime is not installed, and for 8
        bits, whose `compression` in the metadata says how similar the tokens are).

    Raises:
        `ValueError`: the format is unknown, the image size is not a multiple of the patch size, or the graph differs;
            or the calibration pages do not fit.
        `ImportError`: a library that the format needs is not installed.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    chosen, path = _check_arguments(model, format, calibration), Path(path)
    view = ExportedView(fix_image_size(model, image_size, GRAPHS[model.config.model_type].attn_implementation))
    reference = _reference(model, view)
    main = getattr(model.config, "sam_config", model.config)
    shape = (main.num_channels, image_size, image_size)
    metadata = _describe(model.config, shape, tolerance) | dict(chosen.metadata)
    graph, difference = chosen.convert(view, shape), None
    if calibration is not None:
        graph, facts = _compress(graph, chosen, reference, calibration, shape)
        metadata |= facts
    page = make_page(shape)
    with torch.no_grad():
        expected = () if calibration is not None else reference(page)
    with _moved_into_place(path) as temporary:
        chosen.save(graph, temporary, metadata)
        del graph, view, reference
        if release:
            model.to("meta")
        gc.collect()  # Graphs hold cycles.
        run = None if calibration is not None else chosen.open(temporary)
        if run is not None:
            difference = compare(run(page), expected, tolerance)
    return {**metadata, "max_difference": difference}
