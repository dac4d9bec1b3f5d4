"""A trial: what the process measures, and what it says when a way cannot run."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder.runtimes.trials.process import find_function, serve, to_arrays
from deepencoder.runtimes.trials.trial import Trial, TrialError, relative_error

OPENERS = """
import os
from types import SimpleNamespace
import numpy as np

def double(factor, precision):
    print("a library talks")
    return lambda pixel_values, patches_grid=None: SimpleNamespace(
        last_hidden_state=factor * pixel_values, vision_tokens=[pixel_values[0, 0]])

def refuse(factor, precision):
    raise ValueError("no such instructions\\nsecond line")

def die(factor, precision):
    os.write(2, b"illegal instruction\\n")
    os._exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "openers_of_this_test.py").write_text(OPENERS)
    np.save(tmp_path / "pixels.npy", np.ones((1, 3, 2, 2), np.float32))
    return tmp_path


def start(folder: Path, name: str) -> Trial:
    return Trial(f"openers_of_this_test:{name}", ["json"], [folder], factor=2, precision="float32")


def test_a_trial(folder: Path) -> None:
    with start(folder, "double") as trial:
        loaded = trial.open()
        trial.take({"pixel_values": folder / "pixels.npy"}, [[1, 1]])
        run = trial.run()
        output = trial.save(folder / "output.npz")
    assert loaded["seconds"] >= 0 and run["seconds"] >= 0 and set(run) == {"seconds", "peak_bytes"}
    assert np.array_equal(output["last_hidden_state"], np.full((1, 3, 2, 2), 2))
    assert output["vision_tokens"].shape == (2, 2)


def test_failures_are_one_line(folder: Path) -> None:
    with start(folder, "refuse") as trial, pytest.raises(TrialError, match="^ValueError: no such instructions$"):
        trial.open()
    with start(folder, "die") as trial, pytest.raises(TrialError, match="ended with code 3: illegal instruction$"):
        trial.open()


def test_requests_and_answers_are_lines() -> None:
    requests = [{"request": "open", "opener": "json:loads", "modules": [], "s": "{}"}, {"request": "run"}]
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), answers)
    first, second = map(json.loads, answers.getvalue().splitlines())
    assert set(first) == {"seconds", "held_bytes", "peak_bytes"} and second["error"].startswith("TypeError: ")


def test_arrays_of_outputs() -> None:
    output: Any = SimpleNamespace(
        last_hidden_state=torch.ones(1, 2, 3, dtype=torch.bfloat16),
        local_last_hidden_state=None,
        vision_tokens=(torch.zeros(4, 5),),
    )
    found = to_arrays(output)
    assert {name: values.shape for name, values in found.items()} == {
        "last_hidden_state": (1, 2, 3),
        "vision_tokens": (4, 5),
    }
    assert all(values.dtype == np.float32 for values in found.values())
    assert find_function("json:dumps") is json.dumps


def test_relative_error() -> None:
    assert relative_error(np.array([3.0, 4.4]), np.array([3.0, 4.0])) == pytest.approx(0.08)
    with pytest.raises(ValueError, match="found has shape"):
        relative_error(np.zeros(2), np.zeros(3))
