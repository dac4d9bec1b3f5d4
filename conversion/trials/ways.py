"""The ways in which a user can run a DeepEncoder on a CPU: torch, and exported graphs in other runtimes.

Unusual: a way is loaded from a folder of files, as a user would load it, so that loading can be timed. A new way is
one more row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...processing.stitching import stitch_vision_tokens

__all__ = ["RUNTIMES", "WAYS", "Way", "graph_path", "prepare_files"]

Run = Callable[..., Any]
MODEL = "model"
NO_TILES = (1, 1)


@dataclass(frozen=True)
class Way:
    """A way of running a model.

    Args:
        name: its name on the command line.
        title: its name in tables.
        opener: the function that loads it, for a [`Trial`]; takes `folder`, `sides`, `precision` and `threads`.
        precision: `"float32"` or `"bfloat16"`.
        modules: the modules that must be installed.
        install: what to install if they are not.
        runtime: the runtime of exported graphs that it needs; None for torch.
        how: how to ask for it.
    """

    name: str
    title: str
    opener: str
    precision: str
    modules: tuple[str, ...]
    install: str
    runtime: str | None
    how: str

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.modules if find_spec(name) is None]

    @property
    def imported(self) -> tuple[str, ...]:
        """The modules to import before the loading is timed."""
        return self.modules if self.runtime else (*self.modules, "deepencoder.modeling.deepencoder")


def graph_path(folder: Path, side: int) -> Path:
    """Return where the exported graph for views of one side is, in a folder of prepared files."""
    return folder / "graphs" / f"{side}.onnx"


def prepare_files(model: Any, folder: Path, sides: Sequence[int], graphs: bool) -> None:
    """Write what the ways load: the model and, if `graphs`, its exported graphs for views of these sides."""
    from ..export import export_model

    if not (folder / MODEL).exists():
        model.save_pretrained(folder / MODEL)
    for side in sides if graphs else ():
        if not graph_path(folder, side).exists():
            export_model(model, graph_path(folder, side), side)


def open_torch(folder: str, sides: Sequence[int], precision: str, threads: int, compiled: bool = False) -> Run:
    """Load a model in torch, for any side."""
    import torch

    from ...modeling.deepencoder import DeepEncoder

    torch.set_num_threads(threads)
    model = DeepEncoder.from_pretrained(Path(folder) / MODEL, dtype=getattr(torch, precision)).eval()
    if compiled:
        model.compile()

    @torch.inference_mode()
    def run(patches_grid: Any = None, **arrays: np.ndarray) -> Any:
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return model(**tensors, patches_grid=patches_grid)

    return run


def _run_graphs(graphs: dict[int, Callable[[np.ndarray], dict[str, np.ndarray]]]) -> Run:
    """Make one model of the graphs for several sides: each is called for the views or tiles of its side."""

    def run(pixel_values: np.ndarray, pixel_values_local: np.ndarray | None = None, patches_grid: Any = None) -> Any:
        view = graphs[pixel_values.shape[-1]](pixel_values)
        tiles = None if pixel_values_local is None else graphs[pixel_values_local.shape[-1]](pixel_values_local)
        tokens = stitch_vision_tokens(
            view["projected_tokens"],
            None if tiles is None else tiles["projected_tokens"],
            patches_grid or [NO_TILES] * len(pixel_values),
            view["image_newline"],
            view["view_separator"],
        )
        return SimpleNamespace(
            last_hidden_state=view["last_hidden_state"],
            local_last_hidden_state=None if tiles is None else tiles["last_hidden_state"],
            vision_tokens=tokens,
        )

    return run


OUTPUTS = ("last_hidden_state", "projected_tokens", "image_newline", "view_separator")


def open_onnxruntime(folder: str, sides: Sequence[int], precision: str, threads: int) -> Run:
    """Load exported graphs in ONNX Runtime, which computes in the float32 of the graphs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        side: onnxruntime.InferenceSession(
            str(graph_path(Path(folder), side)), options, providers=["CPUExecutionProvider"]
        )
        for side in sides
    }

    def runner(session: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda pixels: dict(zip(OUTPUTS, session.run(OUTPUTS, {"pixel_values": pixels}), strict=True))

    return _run_graphs({side: runner(session) for side, session in sessions.items()})


def open_openvino(folder: str, sides: Sequence[int], precision: str, threads: int) -> Run:
    """Load exported graphs in OpenVINO, which computes in the precision that is asked for."""
    import openvino

    core = openvino.Core()
    # By default OpenVINO computes in bfloat16 wherever the processor has instructions for it.
    hints = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = {side: core.compile_model(str(graph_path(Path(folder), side)), "CPU", hints) for side in sides}

    def runner(graph: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        request = graph.create_infer_request()

        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            results = request.infer({"pixel_values": pixels})
            return {name: np.array(results[name]) for name in OUTPUTS}

        return compute

    return _run_graphs({side: runner(graph) for side, graph in compiled.items()})


_OPENER = "deepencoder.conversion.trials.ways:open_{}"
_TORCH = "dtype=torch.{0} in Python; --dtype {0} for encode, --model-dtype {0} for extract"
_EXPORT = "deepencoder export MODEL FILE.onnx (docs/export.md), and in the runtime {}"


def _way(runtime: str, title: str, precision: str, modules: Sequence[str], install: str, how: str) -> Way:
    opener, of_graphs = _OPENER.format(runtime), None if runtime == "torch" else runtime
    name = f"{runtime}-{precision}"
    return Way(name, f"{title}, {precision}", opener, precision, tuple(modules), install, of_graphs, how)


_ONNX = ("onnx", "onnxscript")  # for the export
WAYS: tuple[Way, ...] = (
    _way("torch", "torch", "float32", ["torch"], "torch", _TORCH.format("float32")),
    _way("torch", "torch", "bfloat16", ["torch"], "torch", _TORCH.format("bfloat16")),
    _way(
        "onnxruntime",
        "ONNX Runtime",
        "float32",
        ["onnxruntime", *_ONNX],
        "onnxruntime onnx onnxscript",
        _EXPORT.format("InferenceSession(FILE)"),
    ),
    _way(
        "openvino",
        "OpenVINO",
        "float32",
        ["openvino", *_ONNX],
        "openvino onnx onnxscript",
        _EXPORT.format('compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})'),
    ),
    _way(
        "openvino",
        "OpenVINO",
        "bfloat16",
        ["openvino", *_ONNX],
        "openvino onnx onnxscript",
        _EXPORT.format('compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})'),
    ),
)
"""The ways of running a model on a CPU, in the order in which they are tried."""
RUNTIMES = tuple(sorted({way.runtime for way in WAYS if way.runtime}))
