"""Each way of running a model gives the model's numbers, with tiles and without."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder.runtimes.trials.process import find_function, to_arrays
from deepencoder.runtimes.trials.trial import relative_error
from deepencoder.runtimes.trials.ways import GRAPHS, MODEL, WAYS, Way, prepare_files

from ..conftest import TILE, VIEW

GRID = [[2, 1]]
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


@pytest.fixture
def folder(source: Path, exported: Path, tmp_path: Path) -> Path:
    (tmp_path / MODEL).symlink_to(source)
    (tmp_path / GRAPHS).symlink_to(exported)
    return tmp_path


def test_files_are_written_once(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    prepare_files(model, tmp_path, [TILE], ["onnx"])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert {"model.safetensors", f"view_{TILE}.onnx"} <= {path.name for path in written}
    prepare_files(model, tmp_path, [TILE], ["onnx"])
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.title)
def test_numbers(way: Way, folder: Path, model: Any) -> None:
    for package in way.packages:
        pytest.importorskip(package)
    run = find_function(way.opener)(str(folder), (VIEW, TILE), torch.get_num_threads(), **way.arguments)
    generator = np.random.default_rng(0)
    view, tiles = (generator.standard_normal((n, 3, side, side), np.float32) for n, side in ((1, VIEW), (2, TILE)))
    for arrays in ({"pixel_values": view}, {"pixel_values": view, "pixel_values_local": tiles}):
        grid = GRID if len(arrays) == 2 else None
        with torch.no_grad():
            tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
            expected = to_arrays(model(**tensors, patches_grid=grid))
        found = to_arrays(run(**arrays, patches_grid=grid))
        assert set(found) == set(expected)
        for name, values in found.items():
            assert relative_error(values, expected[name]) < TOLERANCE[way.precision], name


def test_rows() -> None:
    assert len({way.title for way in WAYS}) == len(WAYS)
    assert WAYS[0].title == "torch, float32"  # the reference of the others
    assert {way.title for way in WAYS} >= {"OpenVINO, bfloat16", "ONNX Runtime, float32"}
    for way in WAYS:
        assert way.precision in way.how and (way.format is None or f"--runtime {way.runtime}" in way.how)


def test_what_is_not_installed_is_named() -> None:
    assert Way("x", "float32", ("json", "no_such_module")).missing == ["no_such_module"]
