"""Exported graphs give what the model gives, in each runtime and for each kind of input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, pipeline

from deepencoder import DeepEncoder, DeepEncoderImageProcessor, ExportedDeepEncoder
from deepencoder.extraction import FeatureExtractor, PageEncoder
from deepencoder.extraction.preparation import prepare_image
from deepencoder.runtimes import RUNTIMES

from ..conftest import report_difference
from .conftest import TILE, VIEW

runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


@runtimes
@torch.no_grad()
def test_pages_with_different_numbers_of_tiles(runtime: str, model: DeepEncoder, exported: Path, inputs: Any) -> None:
    found = ExportedDeepEncoder.from_pretrained(exported, runtime=runtime)
    assert inputs["num_local_patches"].tolist() == [2, 0, 6]
    ours, theirs = found(**inputs), model(**inputs)
    assert set(ours) == set(theirs) and type(ours).__name__ == "DeepEncoderOutput"
    for name in ("last_hidden_state", "pooler_output", "local_last_hidden_state"):
        report_difference(name, ours[name], theirs[name])
    for mine, expected in zip(ours.vision_tokens, theirs.vision_tokens, strict=True):
        report_difference("vision_tokens", mine, expected)
    features = found.get_image_features(**inputs).pooler_output
    assert all(torch.equal(tokens, mine) for tokens, mine in zip(features, ours.vision_tokens, strict=True))


@runtimes
@torch.no_grad()
def test_views_alone(runtime: str, model: DeepEncoder, exported: Path) -> None:
    found = ExportedDeepEncoder.from_pretrained(str(exported), runtime=runtime)
    for batch, dtype in ((1, torch.float32), (5, torch.float64)):
        pixels = torch.randn(batch, 3, VIEW, VIEW)
        ours = found(pixels.to(dtype))
        report_difference(f"batch {batch}", ours.last_hidden_state, model(pixels).last_hidden_state)
        assert ours.local_last_hidden_state is None and len(ours.vision_tokens) == batch
    assert isinstance(found(pixels, return_dict=False), tuple)


def test_large_batches_are_cut(model: DeepEncoder, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepencoder.runtimes.exported_model.PIXELS_TOGETHER", 2 * VIEW * VIEW)
    found = ExportedDeepEncoder.from_pretrained(exported)
    pixels = torch.randn(5, 3, VIEW, VIEW)
    with torch.no_grad():
        report_difference("cut", found(pixels).last_hidden_state, model(pixels).last_hidden_state)


@torch.no_grad()
def test_bfloat16(model: DeepEncoder, exported: Path, inputs: Any) -> None:
    """OpenVINO is as close to float32 in bfloat16 as the model is, on processors that have it."""
    try:
        found = ExportedDeepEncoder.from_pretrained(exported, runtime="openvino", dtype=torch.bfloat16)
        found(**inputs)
    except ValueError as error:
        assert "no instructions" in str(error)
        pytest.skip("this processor has no bfloat16")
    expected, ours = model(**inputs), found(**inputs)
    assert found.dtype == ours.last_hidden_state.dtype == ours.vision_tokens[0].dtype == torch.bfloat16
    difference = (ours.last_hidden_state.float() - expected.last_hidden_state).norm()
    assert difference / expected.last_hidden_state.norm() < 3e-2


@runtimes
def test_it_looks_like_a_model(runtime: str, model: DeepEncoder, exported: Path) -> None:
    found = ExportedDeepEncoder.from_pretrained(exported, runtime=runtime, dtype="auto")
    assert found.eval() is found and found.to("cpu") is found and not found.training
    assert found.dtype == torch.float32 and found.device == torch.device("cpu")
    assert type(found.config) is type(AutoConfig.from_pretrained(exported))
    assert found.config.projection_dim == model.config.projection_dim
    assert torch.equal(found.image_newline, model.image_newline)
    assert torch.equal(found.view_separator, model.view_separator)
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_what_graphs_cannot_do(exported: Path, tmp_path: Path) -> None:
    found = ExportedDeepEncoder.from_pretrained(exported)
    pixels = torch.zeros(1, 3, VIEW, VIEW)
    for call, words in (
        (lambda: found.half(), "runs on the CPU in torch.float32"),
        (lambda: found.to("meta"), "got meta"),
        (lambda: found.save_pretrained(tmp_path / "copy"), "copy its folder"),
        (lambda: found.push_to_hub("encoder"), "upload its folder"),
        (lambda: found(pixels, output_hidden_states=True), "output_hidden_states"),
        (lambda: found(pixels, output_attentions=True), "output_attentions"),
        (lambda: found(pixels.requires_grad_()), "gradients"),
        (lambda: found(torch.zeros(1, 3, VIEW, TILE)), "must be square"),
        (lambda: found(torch.zeros(1, 3, 64, 64)), f"64 pixels a side, but .* holds graphs for {TILE}, {VIEW}"),
        (lambda: found(torch.zeros(1, 3, 65, 65)), "multiple of the patch size"),
        (lambda: found(torch.zeros(1, 3, VIEW, VIEW), pixel_values_local=pixels), "patches_grid is required"),
        (lambda: ExportedDeepEncoder.from_pretrained(exported, runtime="tensorrt"), "runtime must be one of"),
        (lambda: ExportedDeepEncoder.from_pretrained(exported, dtype=torch.float16), "dtype must be torch.float32"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="must be a torch.Tensor"):
        found(np.zeros((1, 3, VIEW, VIEW), dtype=np.float32))
    with pytest.raises(ValueError, match="onnxruntime"):
        ExportedDeepEncoder.from_pretrained(exported, runtime="onnxruntime", dtype=torch.bfloat16)
    assert not (tmp_path / "copy").exists()


def test_a_pipeline(model: DeepEncoder, exported: Path, processor: DeepEncoderImageProcessor) -> None:
    page = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 90, 3), dtype=np.uint8))
    found: Any = ExportedDeepEncoder.from_pretrained(exported)
    features = [
        pipeline("image-feature-extraction", model=each, image_processor=processor)(page, return_tensors=True)
        for each in (found, model)
    ]
    report_difference("pipeline", *features)


@runtimes
def test_extraction(
    runtime: str, model: DeepEncoder, exported: Path, source: Path, cache: Path, processor: DeepEncoderImageProcessor
) -> None:
    page = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8))
    found = ExportedDeepEncoder.from_pretrained(exported, runtime=runtime)
    outputs = ("pooled", "vision_tokens")
    prepared = [prepare_image(page, processor, None)]
    (ours,), (theirs,) = (
        PageEncoder(each, processor, outputs=outputs, dtype="float32").encode_images(prepared)
        for each in (found, model)
    )
    assert isinstance(ours, dict) and isinstance(theirs, dict)
    for name in outputs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5)
    extractor = FeatureExtractor(source, outputs=outputs, dtype="float32", runtime=runtime)
    row = extractor({"image": [page]})
    for name in outputs:
        np.testing.assert_allclose(row[name][0], theirs[name], atol=2e-5)
