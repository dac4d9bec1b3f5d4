"""The table of outputs: what each row takes from the model's output, and the shape it declares."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder import DeepEncoderImageProcessor
from deepencoder.extraction.outputs import DTYPES, MODEL_OUTPUTS, OUTPUTS, VectorInputs, check_outputs, take_outputs
from deepencoder.processing.token_pooling import VectorOptions

from .corpus import picture
from .helpers import load_once, own_features

SIZES = ((60, 140), (40, 30), (150, 100))  # The second one is too small for tiles.


@pytest.mark.parametrize("name", ["fixed", "tiled"])
def test_outputs_of_a_batch_are_those_of_its_images(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    model, processor = load_once(folder)
    images = [picture(number, size) for number, size in enumerate(SIZES)]
    inputs = processor(images, return_tensors="pt")
    shown = processor.get_token_mask([image.size[::-1] for image in images]).unflatten(1, (2, 2))
    with torch.no_grad():
        rows = take_outputs(model(**inputs), inputs["num_local_patches"], list(OUTPUTS), VectorInputs(shown, 2, None))
    for row, image in zip(rows, images, strict=True):
        expected = own_features(folder, image)
        assert row.keys() == expected.keys() == OUTPUTS.keys()
        for output, tensor in row.items():
            np.testing.assert_allclose(tensor, expected[output], atol=2e-5)
    assert set(take_outputs(model(**inputs), inputs["num_local_patches"], ["pooled"])[0]) == {"pooled"}
    assert set(take_outputs(model(**inputs), inputs["num_local_patches"])[0]) == set(MODEL_OUTPUTS)
    with pytest.raises(ValueError, match="vector_inputs is required for 'multi_vector'"):
        take_outputs(model(**inputs), inputs["num_local_patches"], ["multi_vector"])


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("fields", [{}, {"size": {"height": 192, "width": 128}}, {"crop_to_patches": True}])
def test_declared_shapes_are_those_of_features(fixed: Path, name: str, fields: dict[str, Any]) -> None:
    model, _ = load_once(fixed)
    processor = DeepEncoderImageProcessor(**({"size": {"height": 128, "width": 128}, "tile_size": 64} | fields))
    inputs, options = processor(picture(0, (150, 100)), return_tensors="pt"), VectorOptions(pool=2, width=24)
    shown = torch.ones(1, inputs["pixel_values"].shape[2] // 64, 2, dtype=torch.bool)
    vector_inputs = VectorInputs(shown, options.pool, torch.from_numpy(options.make_projection(64)))
    with torch.no_grad():
        (row,) = take_outputs(model(**inputs), inputs["num_local_patches"], [name], vector_inputs)
    kind = OUTPUTS[name]
    assert kind.name == name and row[name].shape[-1] == kind.width(model.config, options)
    if kind.count is None:
        assert row[name].ndim == 1
        return
    count = kind.count(processor._fields(None, {}), model.config.sam_config.total_stride, options)
    assert count == (None if "crop_to_patches" in fields else len(row[name]))


@pytest.mark.parametrize(
    ("outputs", "dtype", "words"),
    [
        (("nothing",), "float16", "outputs must be some of 'pooled', 'tokens', 'vision_tokens', 'multi_vector', got"),
        ("pooled", "float16", "outputs must be some of"),
        ((), "float16", "outputs must be some of"),
        (("pooled", "pooled"), "float16", "outputs must be some of"),
        (("pooled",), "int8", "dtype must be one of 'float16', 'bfloat16', 'float32', got 'int8'"),
    ],
)
def test_unknown_names_are_refused(outputs: Any, dtype: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_outputs(outputs, dtype)
    for known in DTYPES:
        check_outputs(tuple(OUTPUTS), known)
