"""Each way of running a model gives the model's numbers, with tiles and without."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig
from deepencoder.conversion.trials.process import find_function, to_arrays
from deepencoder.conversion.trials.trial import relative_error
from deepencoder.conversion.trials.ways import RUNTIMES, WAYS, Way, prepare_files

from ...conftest import randomize

GRID = [[2, 1]]
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


@pytest.fixture(scope="module")
def model() -> Any:
    sam = SamEncoderConfig.tiny(num_hidden_layers=1, global_attn_indexes=(0,))
    clip = ClipVisionEncoderConfig.tiny(num_hidden_layers=1, image_size=256, patch_size=sam.total_stride)
    return randomize(DeepEncoder(DeepEncoderConfig(sam_config=sam, clip_config=clip, projection_dim=48)))


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("files")
    prepare_files(model, path, (256, 128), graphs=True)
    return path


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_numbers(way: Way, folder: Path, model: Any) -> None:
    for module in way.modules:
        pytest.importorskip(module)
    threads = torch.get_num_threads()
    run = find_function(way.opener)(str(folder), (256, 128), way.precision, threads)
    generator = np.random.default_rng(0)
    view, tiles = (generator.standard_normal((n, 3, side, side), np.float32) for n, side in ((1, 256), (2, 128)))
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
    assert len({way.name for way in WAYS}) == len(WAYS)
    assert WAYS[0].name == "torch-float32"  # the reference of the others
    for way in WAYS:
        assert way.name == f"{way.runtime or 'torch'}-{way.precision}" and way.how and way.install
        assert callable(find_function(way.opener))
    assert RUNTIMES == ("onnxruntime", "openvino")


def test_what_is_not_installed_is_named() -> None:
    way = Way("x", "X", "json:loads", "float32", ("json", "no_such_module"), "x", "x", "x")
    assert way.missing == ["no_such_module"]
