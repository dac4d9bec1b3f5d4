"""Arguments of a forward pass that are refused in one line, which names the argument and says what to pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoder,
    SamEncoderConfig,
)

MODELS = (
    (DeepEncoder, DeepEncoderConfig),
    (SamEncoder, SamEncoderConfig),
    (ClipVisionEncoder, ClipVisionEncoderConfig),
)
every_model = pytest.mark.parametrize("classes", MODELS, ids=lambda classes: classes[0].__name__)


def build(classes: Any) -> Any:
    return classes[0](classes[1].tiny()).eval()


def is_one_line(error: pytest.ExceptionInfo[Any], *words: str) -> bool:
    text = str(error.value)
    return "\n" not in text and len(text) < 500 and all(word in text for word in words)


@every_model
def test_misspelt_options_are_refused(classes: Any) -> None:
    with pytest.raises(TypeError) as error:
        build(classes)(torch.zeros(1, 3, 64, 64), output_hiden_states=True)
    name = classes[0].__name__
    assert is_one_line(error, f"{name}.forward", "'output_hiden_states'", "did you mean 'output_hidden_states'?")
    with pytest.raises(TypeError) as error:
        build(classes)(torch.zeros(1, 3, 64, 64), zzzzzz=True)
    assert is_one_line(error, "'zzzzzz'")


@every_model
def test_the_nearest_name_may_be_that_of_a_parameter(classes: Any) -> None:
    with pytest.raises(TypeError, match="did you mean 'pixel_values'?"):
        build(classes)(torch.zeros(1, 3, 64, 64), pixel_value=torch.zeros(1))


@every_model
@torch.no_grad()
def test_what_wrappers_and_decorators_add_is_accepted(classes: Any) -> None:
    """peft's wrapper for feature extraction passes the arguments of text models to every model, as None."""
    model, pixels = build(classes), torch.randn(1, 3, 64, 64)
    expected = model(pixels).last_hidden_state
    added = {"input_ids": None, "attention_mask": None, "inputs_embeds": None, "use_cache": False, "is_causal": False}
    assert torch.equal(model(pixels, **added).last_hidden_state, expected)
    model.config.use_cache = True
    assert torch.equal(model(pixels).last_hidden_state, expected)


@every_model
@torch.no_grad()
def test_what_the_image_processor_returns_is_accepted(classes: Any, example_page: Path) -> None:
    inputs = DeepEncoderImageProcessor(mode="gundam")(example_page, return_tensors="pt")
    inputs = {name: value[..., ::8, ::8] if value.ndim == 4 else value for name, value in inputs.items()}
    assert "pixel_values_local" in inputs and build(classes)(**inputs).last_hidden_state.isfinite().all()


@torch.no_grad()
def test_compiled_models_refuse_the_same() -> None:
    compiled = torch.compile(build(MODELS[1]), backend="eager")
    with pytest.raises(TypeError, match="output_hidden_states"):
        compiled(torch.zeros(1, 3, 64, 64), output_hiden_states=True)
    with pytest.raises(ValueError, match="normalised floats"):
        compiled(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_grid_of_an_empty_batch_is_checked_too() -> None:
    with pytest.raises(ValueError, match="patches_grid.*0 pairs.*got 3"):
        build(MODELS[0])(torch.zeros(0, 3, 64, 64), patches_grid=3)


@every_model
@torch.no_grad()
def test_options_of_transformers_are_accepted(classes: Any) -> None:
    output = build(classes)(torch.zeros(1, 3, 64, 64), output_hidden_states=True, num_items_in_batch=None)
    assert output.hidden_states


@every_model
@pytest.mark.parametrize("pixels", [np.zeros((1, 3, 64, 64), np.float32), [[0.0]], "page.png", 3], ids=type)
def test_other_objects_are_refused(classes: Any, pixels: Any) -> None:
    with pytest.raises(TypeError) as error:
        build(classes)(pixels)
    assert is_one_line(error, "pixel_values must be a torch.Tensor", type(pixels).__name__, "return_tensors")


@every_model
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_pixels_that_are_not_normalised_are_refused(classes: Any, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError) as error:
        build(classes)(torch.zeros(1, 3, 64, 64, dtype=dtype))
    assert is_one_line(error, "pixel_values must hold normalised floats", str(dtype), "normalize_pixels")


def test_feature_maps_are_checked_too() -> None:
    model = build(MODELS[2])
    with pytest.raises(TypeError, match="patch_embeds must be a torch.Tensor"):
        model(patch_embeds=np.zeros((1, 32, 4, 4), np.float32))
    with pytest.raises(ValueError, match="patch_embeds must hold normalised floats"):
        model(patch_embeds=torch.zeros(1, 32, 4, 4, dtype=torch.uint8))


def test_views_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the patch size 16, got 8"):
        build(MODELS[0]).encode_view(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"patches_grid": torch.tensor([[float("inf"), 1.0]])}, "patches_grid"),
        ({"patches_grid": [[float("nan"), 1]]}, "patches_grid"),
        ({"patches_grid": 3}, "patches_grid"),
        ({"patches_grid": [[10**400, 1]]}, "patches_grid"),
        ({"patches_grid": [[2, 1]], "num_local_patches": 2}, "num_local_patches"),
        ({"patches_grid": [[2, 1]], "num_local_patches": torch.tensor(2)}, "num_local_patches"),
        ({"patches_grid": [[2, 1]], "num_local_patches": ["x" * 10**6]}, "num_local_patches"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_grids_that_are_none(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError) as error:
        build(MODELS[0])(torch.zeros(1, 3, 64, 64), pixel_values_local=torch.zeros(2, 3, 64, 64), **arguments)
    assert is_one_line(error, word)
