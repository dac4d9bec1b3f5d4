"""The formats of exported graphs: how each is made and written, and how it runs for the comparison with the model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .compression import quantize_openvino
from .graphs import ExportedView
from .onnx_format import OPSET, convert_to_onnx, open_onnx, save_onnx
from .openvino_format import convert_to_openvino, open_openvino, save_openvino
from .tracing import trace_view

__all__ = ["FORMATS", "OPSET", "GraphFormat"]


def _save_torch(program: Any, path: Path, metadata: dict[str, str]) -> None:
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})


def _open_torch(path: Path) -> Any:
    return torch.export.load(path).module()


@dataclass(frozen=True)
class GraphFormat:
    """A format of exported graphs.

    Args:
        suffix: file suffix.
        convert: makes the graph of a view, given the shape `(channels, height, width)` of its pixels.
        save: writes the graph, with metadata, to a path; it may write further files of that stem beside it.
        open: returns a function that runs the graph at a path; None if that is not possible here.
        compress: quantises a graph to 8 bits with pages, given both; None if the format has no 8 bits here.
            Where it has, `open` takes the graph, too.
        weights_path: where the weights of a graph at a path lie, if not in the same file.
        metadata: further metadata.
    """

    suffix: str
    convert: Callable[[ExportedView, tuple[int, ...]], Any]
    save: Callable[[Any, Path, dict[str, str]], None]
    open: Callable[[Any], Any]
    compress: Callable[[Any, torch.Tensor], Any] | None = None
    weights_path: Callable[[Path], Path | None] = lambda path: None
    metadata: Mapping[str, str] = field(default_factory=dict)


FORMATS = {
    "onnx": GraphFormat(
        ".onnx",
        convert_to_onnx,
        save_onnx,
        open_onnx,
        weights_path=lambda path: path.with_name(f"{path.name}.data"),
        metadata={"opset": str(OPSET)},
    ),
    "openvino": GraphFormat(
        ".xml",
        convert_to_openvino,
        save_openvino,
        open_openvino,
        compress=quantize_openvino,
        weights_path=lambda path: path.with_suffix(".bin"),
    ),
    "torch": GraphFormat(".pt2", trace_view, _save_torch, _open_torch),
}
"""The formats of exported graphs, by name."""
