"""The formats of exported graphs: how each is written, and how it runs for the comparison with the model."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...modeling.catalog import MODELS
from .graphs import ExportedView

__all__ = ["FORMATS", "OPSET", "GraphFormat"]

OPSET = 18


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _write_onnx(view: ExportedView, shape: tuple[int, ...], path: Path, metadata: dict[str, str]) -> Any:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX export needs onnx and onnxscript: pip install onnx onnxscript onnxruntime") from error
    names = list(MODELS[view.model.config.model_type].exported_outputs)
    with warnings.catch_warnings(), _silenced("torch.onnx", "onnx_ir"):  # They are about the exporter's own code.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            view,
            (torch.zeros(2, *shape),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=names,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=True)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(names, {"pixel_values": pixels.numpy()})


def _write_torch(view: ExportedView, shape: tuple[int, ...], path: Path, metadata: dict[str, str]) -> Any:
    dynamic_shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(view, (torch.zeros(2, *shape),), dynamic_shapes=dynamic_shapes)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
    return torch.export.load(path).module()


@dataclass(frozen=True)
class GraphFormat:
    """A format of exported graphs.

    Args:
        suffix: file suffix.
        write: writes the graph, with metadata, and returns a function that runs it; None if that is not possible here.
        metadata: further metadata.
    """

    suffix: str
    write: Callable[[ExportedView, tuple[int, ...], Path, dict[str, str]], Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


FORMATS = {
    "onnx": GraphFormat(".onnx", _write_onnx, {"opset": str(OPSET)}),
    "torch": GraphFormat(".pt2", _write_torch),
}
"""The formats of exported graphs, by name."""
