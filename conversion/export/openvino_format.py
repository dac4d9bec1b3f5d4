"""OpenVINO graphs.

Unusual: OpenVINO would compute in bfloat16 on processors that have it, so float32 is asked for.
"""

from pathlib import Path
from typing import Any

from ...modeling.catalog import MODELS
from .graphs import ExportedView
from .tracing import quiet_exporters, trace_view, without_telemetry

__all__ = ["METADATA", "convert_to_openvino", "open_openvino", "save_openvino"]

METADATA = "deepencoder"
"""The key of our metadata in the `rt_info` of a graph."""


def convert_to_openvino(view: ExportedView, shape: tuple[int, ...]) -> Any:
    """Return an `openvino.Model`, which shares the weights of the model.

    Raises:
        `ImportError`: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO export needs openvino: pip install openvino") from error
    with quiet_exporters(), without_telemetry():
        graph = openvino.convert_model(trace_view(view, shape))
    graph.reshape({0: [-1, *shape]})
    names = ["pixel_values"], list(MODELS[view.model.config.model_type].exported_outputs)
    for ports, port_names in zip((graph.inputs, graph.outputs), names, strict=True):
        for port, name in zip(ports, port_names, strict=True):
            port.get_tensor().set_names({name})
    return graph


def save_openvino(graph: Any, path: Path, metadata: dict[str, str]) -> None:
    """Write the graph, and its weights beside it in a `.bin` file."""
    import openvino

    for name, value in metadata.items():
        graph.set_rt_info(value, [METADATA, name])
    openvino.save_model(graph, path, compress_to_fp16=False)


def open_openvino(graph: Any) -> Any:
    """Return a function that runs a graph, or a file, in float32."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(graph, "CPU", hints)
    return lambda pixels: [compiled({0: pixels.numpy()})[output] for output in compiled.outputs]
