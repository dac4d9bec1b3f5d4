"""The ways in which a user can run a DeepEncoder on a CPU: torch, and exported graphs in each runtime.

Unusual: a way is loaded from a folder of files, as a user would load it, so that loading can be timed. The runtimes
are those of `runtimes/engines.py`; nothing here has to change when one is added.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import RUNTIMES, Runtime

__all__ = ["TORCH", "WAYS", "Way", "prepare_files", "take_arrays"]

Run = Callable[..., Any]
MODEL, GRAPHS = "model", "graphs"
TORCH = "torch"
TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
EXPORTS = {"onnx": ("onnx", "onnxscript")}
"""The packages that the export to a format needs besides the runtime."""


@dataclass(frozen=True)
class Way:
    """A way of running a model.

    Args:
        runtime: `"torch"`, or the name of a runtime.
        precision: `"float32"` or `"bfloat16"`.
        packages: the packages that must be installed, which are modules of the same names.
        format: the format of the graphs that it runs; None for torch.
    """

    runtime: str
    precision: str
    packages: tuple[str, ...]
    format: str | None = None

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{TITLES.get(self.runtime, self.runtime)}, {self.precision}"

    @property
    def opener(self) -> str:
        """The function that loads it, for a [`Trial`]."""
        return f"{__name__}:{open_torch.__name__ if self.format is None else open_exported.__name__}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `opener` that choose this way; `folder`, `sides` and `threads` are the others."""
        chosen = {"precision": self.precision}
        return chosen if self.format is None else {**chosen, "runtime": self.runtime}

    @property
    def imported(self) -> tuple[str, ...]:
        """The modules to import before the loading is timed."""
        ours = "deepencoder.modeling.deepencoder" if self.format is None else "deepencoder.runtimes.exported_model"
        return (*self.packages, ours)

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]

    @property
    def how(self) -> str:
        """How to ask for it."""
        if self.format is None:
            return (
                f"dtype=torch.{self.precision} in Python, --dtype (encode) or --model-dtype (extract) {self.precision}"
            )
        python = f'ExportedDeepEncoder.from_pretrained(MODEL, runtime="{self.runtime}", dtype="{self.precision}")'
        options = f"--runtime {self.runtime} with --dtype (encode) or --model-dtype (extract) {self.precision}"
        return f"{python} in Python, {options}"


def _of_runtime(runtime: Runtime) -> list[Way]:
    packages = (runtime.library, *EXPORTS.get(runtime.format, ()))
    return [Way(runtime.name, precision, packages, runtime.format) for precision in runtime.dtypes]


WAYS: tuple[Way, ...] = (
    Way(TORCH, "float32", ("torch",)),
    Way(TORCH, "bfloat16", ("torch",)),
    *(way for runtime in RUNTIMES.values() for way in _of_runtime(runtime)),
)
"""The ways of running a model on a CPU. The others are compared with the first."""


def prepare_files(model: Any, folder: Path, sides: Sequence[int], formats: Collection[str]) -> None:
    """Write what the ways load, unless it is there: the model, and its graphs for views of these sides.

    Args:
        model: a [`DeepEncoder`].
        folder: where the files are written.
        sides: the sides of the views in pixels.
        formats: the formats of the graphs.
    """
    from ...conversion.export.folders import export_folder, find_graphs

    if not (folder / MODEL).exists():
        model.save_pretrained(folder / MODEL)
    for format in formats:
        found = find_graphs(folder / GRAPHS, format) if (folder / GRAPHS).exists() else {}
        missing = [side for side in sides if side not in found]
        if missing:
            export_folder(model, folder / GRAPHS, missing, format)


def take_arrays(model: Any) -> Run:
    """Return a function that calls a model with arrays in place of tensors, without gradients."""
    import torch

    @torch.inference_mode()
    def run(patches_grid: Any = None, **arrays: np.ndarray) -> Any:
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return model(**tensors, patches_grid=patches_grid)

    return run


def open_torch(folder: str, sides: Sequence[int], threads: int, precision: str, compiled: bool = False) -> Run:
    """Load a model in torch, for views of any side."""
    import torch

    from ...modeling.deepencoder import DeepEncoder

    torch.set_num_threads(threads)
    model = DeepEncoder.from_pretrained(Path(folder) / MODEL, dtype=getattr(torch, precision)).eval()
    if compiled:
        model.compile()
    return take_arrays(model)


def open_exported(folder: str, sides: Sequence[int], threads: int, precision: str, runtime: str) -> Run:
    """Load the graphs for views of some sides in a runtime."""
    import torch

    from ..exported_model import ExportedDeepEncoder

    torch.set_num_threads(threads)
    model = ExportedDeepEncoder.from_pretrained(Path(folder) / GRAPHS, runtime=runtime, dtype=precision)
    for side in sides:
        model.graphs.get(side)
    return take_arrays(model)
