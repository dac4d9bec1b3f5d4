"""ONNX graphs: written by torch's exporter, and run by ONNX Runtime.

Unusual: the exporter's own optimizer is not used. Its rewriting rules take most of the time of an export, and ONNX
Runtime applies rules of its own when it loads a graph. What remains is to fold constants and to remove what is unused.
"""

from pathlib import Path
from typing import Any

import torch

from ...modeling.catalog import MODELS
from .graphs import ExportedView
from .tracing import quiet_exporters, trace_view

__all__ = ["OPSET", "convert_to_onnx", "open_onnx", "save_onnx"]

OPSET = 18


def convert_to_onnx(view: ExportedView, shape: tuple[int, ...]) -> Any:
    """Return a `torch.onnx.ONNXProgram`, which shares the weights of the model.

    Raises:
        `ImportError`: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        from onnxscript import optimizer
    except ImportError as error:
        raise ImportError("ONNX export needs onnx and onnxscript: pip install onnx onnxscript onnxruntime") from error
    with quiet_exporters("torch.onnx", "onnx_ir", "onnxscript"):
        program = torch.onnx.export(
            trace_view(view, shape),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=list(MODELS[view.model.config.model_type].exported_outputs),
            verbose=False,
            optimize=False,
        )
        assert program is not None
        optimizer.inline(program.model)
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    return program


def save_onnx(program: Any, path: Path, metadata: dict[str, str]) -> None:
    """Write the graph, and its weights beside it."""
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=True)


def open_onnx(path: Path) -> Any:
    """Return a function that runs a file, or None if onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False  # It would keep the memory of all that ever ran.
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixel_values": pixels.numpy()})
