"""The process in which one way of running a model is timed.

Unusual: libraries keep threads, pools of memory and compiled code for the life of a process. In a process of its own a
way has all of the machine and nothing from the one before, and the memory that it takes can be measured. Requests and
answers are lines of JSON; what the libraries print goes to stderr.

    python -m deepencoder.runtimes.trials.process
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from .memory import forget_peak, held_bytes, peak_bytes

__all__ = ["TrialProcess", "find_function", "main", "to_arrays"]

FIELDS = ("last_hidden_state", "local_last_hidden_state", "vision_tokens")


def find_function(place: str) -> Callable[..., Any]:
    """Return the function at a place such as `package.module:function`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _to_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor of torch
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, np.float32)


def to_arrays(output: Any) -> dict[str, np.ndarray]:
    """Return what a model computed for one page as arrays of float32, by field of `DeepEncoderOutput`."""
    found: dict[str, np.ndarray] = {}
    for name in FIELDS:
        values = getattr(output, name, None)
        if values is not None:
            found[name] = _to_array(values[0] if isinstance(values, Sequence) else values)
    return found


def _added(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before


class TrialProcess:
    """Answers the requests of a [`Trial`]. Each method is a request, and returns its answer."""

    def __init__(self) -> None:
        self._run: Callable[..., Any] = lambda **inputs: None
        self._inputs: dict[str, Any] = {}
        self._output: Any = None
        self._before: int | None = None

    def open(self, opener: str, modules: Sequence[str], **arguments: Any) -> dict[str, Any]:
        """Load a model: import `modules`, which is not timed, then call the function `opener` with the arguments."""
        function = find_function(opener)
        for module in modules:
            importlib.import_module(module)
        forget_peak()
        self._before = held_bytes()
        start = time.perf_counter()
        self._run = function(**arguments)
        elapsed = time.perf_counter() - start
        return {
            "seconds": elapsed,
            "held_bytes": _added(held_bytes(), self._before),
            "peak_bytes": _added(peak_bytes(), self._before),
        }

    def take(self, arrays: Mapping[str, str], patches_grid: Any = None) -> dict[str, Any]:
        """Read the inputs of the runs that follow from `.npy` files."""
        self._inputs = {name: np.load(path) for name, path in arrays.items()}
        if patches_grid is not None:
            self._inputs["patches_grid"] = patches_grid
        return {}

    def run(self) -> dict[str, Any]:
        """Run the model once. `peak_bytes` is the whole memory of the model and of this run."""
        self._output = None
        forget_peak()
        start = time.perf_counter()
        self._output = self._run(**self._inputs)
        elapsed = time.perf_counter() - start
        return {"seconds": elapsed, "peak_bytes": _added(peak_bytes(), self._before)}

    def save(self, path: str) -> dict[str, Any]:
        """Write what the last run computed, as a `.npz` file."""
        np.savez(path, **to_arrays(self._output))  # type: ignore[arg-type]
        return {}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests, one a line, until there are no more. A failure is an answer, too: its text under `error`."""
    process = TrialProcess()
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(process, request.pop("request"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve on the process's own streams, after stdout has been given to the libraries as a second stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
