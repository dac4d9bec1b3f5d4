"""The runtimes, one row each: which graphs they run, in which dtypes, and how.

Unusual: both get as many threads as torch has, so that a process which shares the cores with others need only call
`torch.set_num_threads`. Help texts show this table, so nothing here imports torch.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OUTPUTS", "RUNTIMES", "Run", "Runtime"]

OUTPUTS = ("last_hidden_state", "pooler_output", "projected_tokens")
"""The outputs of a graph that are used."""
Run = Callable[["np.ndarray"], "list[np.ndarray]"]
"""Runs a graph: from `(views, channels, side, side)` in float32 to the [`OUTPUTS`], in their order."""
Shape = list[int | None]


@dataclass(frozen=True)
class Graph:
    """An open graph.

    Args:
        inputs, outputs: the shapes of its inputs and outputs by name; None is a side of any length.
        run: runs it.
    """

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    run: Run


@dataclass(frozen=True)
class Runtime:
    """A library that runs exported graphs.

    Args:
        name: what users call it.
        format: format of its graphs, one of the export's `FORMATS`.
        library: the module to import, and the package to install.
        dtypes: the dtypes in which it computes; the first is the default.
        open: opens a graph, given its path, a dtype and the number of threads.
    """

    name: str
    format: str
    library: str
    dtypes: tuple[str, ...]
    open: Callable[[Path, str, int], Graph]


def _open_openvino(path: Path, dtype: str, threads: int) -> Graph:
    import openvino

    core = openvino.Core()
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("dtype must be torch.float32, as this processor has no instructions for torch.bfloat16.")
    # Left to itself, OpenVINO computes in bfloat16 wherever the processor can.
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = core.compile_model(path, "CPU", options)
    lock = threading.Lock()  # The model has one request, which holds the memory of its activations.

    def run(pixels: "np.ndarray") -> "list[np.ndarray]":
        with lock:
            results = compiled({"pixel_values": pixels})
        return [results[name] for name in OUTPUTS]

    def shapes(ports: list) -> dict[str, Shape]:
        return {
            name: [side.get_length() if side.is_static else None for side in port.get_partial_shape()]
            for port in ports
            for name in port.get_names()
        }

    return Graph(shapes(compiled.inputs), shapes(compiled.outputs), run)


def _open_onnxruntime(path: Path, dtype: str, threads: int) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # It would keep the memory of the largest batch that ever ran.
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def shapes(ports: list) -> dict[str, Shape]:
        return {port.name: [side if isinstance(side, int) else None for side in port.shape] for port in ports}

    return Graph(
        shapes(session.get_inputs()),
        shapes(session.get_outputs()),
        lambda pixels: session.run(list(OUTPUTS), {"pixel_values": pixels}),
    )


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("openvino", "openvino", "openvino", ("float32", "bfloat16"), _open_openvino),
        Runtime("onnxruntime", "onnx", "onnxruntime", ("float32",), _open_onnxruntime),
    )
}
"""The runtimes, by name."""
