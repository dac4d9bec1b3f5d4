"""Each row of the table of runtimes can be used."""

from pathlib import Path

import numpy as np
import pytest

from deepencoder.conversion.export import FORMATS
from deepencoder.conversion.export.folders import graph_name
from deepencoder.runtimes.engines import OUTPUTS, RUNTIMES

from .conftest import TILE


@pytest.mark.parametrize("name", RUNTIMES)
def test_graphs_are_opened(name: str, exported: Path) -> None:
    runtime = RUNTIMES[name]
    assert runtime.name == name and runtime.format in FORMATS and runtime.dtypes[0] == "float32"
    graph = runtime.open(exported / graph_name(TILE, runtime.format), "float32", 1)
    assert graph.inputs == {"pixel_values": [None, 3, TILE, TILE]}
    assert set(OUTPUTS) < set(graph.outputs)
    first = graph.run(np.zeros((2, 3, TILE, TILE), dtype=np.float32))
    kept = [array.copy() for array in first]
    graph.run(np.ones((1, 3, TILE, TILE), dtype=np.float32))
    for array, before, output in zip(first, kept, OUTPUTS, strict=True):
        np.testing.assert_array_equal(array, before)  # Later runs do not write into earlier results.
        assert [None, *array.shape[1:]] == graph.outputs[output]
