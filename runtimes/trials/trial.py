"""A trial: one way of running a model, timed in a process of its own, as the caller sees it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Trial", "TrialError", "relative_error"]

PROCESS = "deepencoder.runtimes.trials.process"


class TrialError(RuntimeError):
    """A way of running a model failed on this machine. The text is one line that says how."""


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference of two arrays, relative to the norm of the second."""
    if found.shape != expected.shape:
        raise ValueError(f"found has shape {found.shape}, but expected has {expected.shape}.")
    difference = found.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


class Trial:
    """A process that loads a model and runs it when asked. Use it in a `with` statement, which ends the process.

    Args:
        opener: where the function is that loads the model, such as `package.module:function`. It returns a function
            that takes `pixel_values` and, for a page with tiles, `pixel_values_local` and `patches_grid`, and returns
            an object with fields of `DeepEncoderOutput`.
        modules: modules that are imported before the loading is timed.
        folders: further folders in which modules are looked for.
        environment: further environment variables.
        arguments: what `opener` is called with, by name.
    """

    def __init__(
        self,
        opener: str,
        modules: Sequence[str] = (),
        folders: Sequence[Path] = (),
        environment: dict[str, str] | None = None,
        **arguments: Any,
    ) -> None:
        self._request = {"opener": opener, "modules": list(modules), **arguments}
        paths = [*map(str, folders), *sys.path]
        variables = {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | variables | (environment or {}),
            text=True,
        )

    def __enter__(self) -> "Trial":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise TrialError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrialError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f"the process ended with code {code}" + (f": {lines[-1]}" if lines else "")

    def open(self) -> dict[str, Any]:
        """Load the model. Returns `seconds`, and the memory of the model: `held_bytes` and, at the peak, `peak_bytes`.

        Raises:
            [`TrialError`]: it cannot be loaded.
        """
        return self._ask("open", **self._request)

    def take(self, arrays: dict[str, Path], patches_grid: Any = None) -> None:
        """Choose the inputs of the runs that follow: `.npy` files by the name of the input."""
        self._ask("take", arrays={name: str(path) for name, path in arrays.items()}, patches_grid=patches_grid)

    def run(self) -> dict[str, Any]:
        """Run the model once.

        Returns:
            `seconds`, and `peak_bytes`, the memory of the model and of the run together.

        Raises:
            [`TrialError`]: it failed.
        """
        return self._ask("run")

    def save(self, path: Path) -> dict[str, np.ndarray]:
        """Return what the last run computed, by way of a file: arrays by field of `DeepEncoderOutput`."""
        self._ask("save", path=str(path))
        with np.load(path) as saved:
            return dict(saved)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()
