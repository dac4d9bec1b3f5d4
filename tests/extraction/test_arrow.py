"""Arrow columns: their declared types, and how arrays become columns."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest

from deepencoder.extraction import OUTPUTS, FeatureExtractor, Page, PageFeatures
from deepencoder.extraction.arrow import feature_fields, page_schema, to_arrow, to_table

from .helpers import load_once


def test_arrow_arrays_are_checked_and_equal(fixed: Path) -> None:
    kind = pyarrow.list_(pyarrow.list_(pyarrow.float16(), 3))
    arrays = [np.arange(6, dtype=np.float16).reshape(2, 3), np.zeros((0, 3), np.float16), np.ones((1, 3), np.float16)]
    laid_out = to_arrow(arrays, kind)
    assert laid_out.type == kind and laid_out.to_pylist() == [array.tolist() for array in arrays]
    with pytest.raises(ValueError, match="shape"):
        to_arrow([np.zeros((2, 4), np.float16)], kind)
    model, processor = load_once(fixed)
    for field in feature_fields(model.config, processor, tuple(OUTPUTS), "float16"):
        assert to_arrow([], field.type).type == field.type


def test_declared_types(fixed: Path, tiled: Path) -> None:
    half, single = pyarrow.float16(), pyarrow.float32()
    assert FeatureExtractor(fixed, outputs=tuple(OUTPUTS)).schema == pyarrow.schema(
        {
            "pooled": pyarrow.list_(half, 32),
            "tokens": pyarrow.list_(pyarrow.list_(half, 64), 4),
            "vision_tokens": pyarrow.list_(pyarrow.list_(half, 48), 7),
            "multi_vector": pyarrow.list_(pyarrow.list_(half, 64), 1),
        }
    )
    short = FeatureExtractor(fixed, outputs=("multi_vector",), mode="base", vector_pool=3, vector_width=8)
    assert short.schema == pyarrow.schema({"multi_vector": pyarrow.list_(pyarrow.list_(half, 8), 36)})
    assert FeatureExtractor(tiled, outputs=("vision_tokens",), dtype="bfloat16").schema == pyarrow.schema(
        {"vision_tokens": pyarrow.list_(pyarrow.list_(single, 48))}
    )
    shape = FeatureExtractor(tiled, outputs=("tokens",), mode="base").schema.field("tokens").type
    assert shape.list_size == 256  # the mode decides


def test_a_table_holds_a_page_in_each_row() -> None:
    schema = page_schema([pyarrow.field("pooled", pyarrow.list_(pyarrow.float32(), 2))])
    row = PageFeatures(Page("a.pdf", 3), 10, 20, "0f", (2, 1), 7, {"pooled": np.ones(2, np.float32)})
    table = to_table([row], schema, {"model": "m", "commit": "c", "mode": "tiny"})
    assert table.schema == schema
    assert table.to_pylist() == [
        {
            "source": "a.pdf",
            "page": 3,
            "width": 10,
            "height": 20,
            "grid": [2, 1],
            "num_tokens": 7,
            "model": "m",
            "commit": "c",
            "mode": "tiny",
            "sha256": "0f",
            "pooled": [1.0, 1.0],
        }
    ]
