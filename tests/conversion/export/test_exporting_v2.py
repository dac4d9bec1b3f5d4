"""Exported graphs of a DeepEncoderV2 give the model's numbers, for views of each size that has queries."""

import json
from pathlib import Path

import pytest
import torch

from deepencoder import DeepEncoderV2, DeepEncoderV2Config, SamEncoderConfig
from deepencoder.conversion.export import TOLERANCE, export_model
from deepencoder.modeling.catalog import MODELS

from ...conftest import randomize

NAMES = list(MODELS["deepencoder_v2"].exported_outputs)


@pytest.fixture(scope="module")
def model() -> DeepEncoderV2:
    sam = SamEncoderConfig.tiny(num_hidden_layers=2)
    found = randomize(DeepEncoderV2(DeepEncoderV2Config.tiny(sam_config=sam)))
    assert isinstance(found, DeepEncoderV2)
    return found


def expected_outputs(model: DeepEncoderV2, pixels: torch.Tensor) -> list[torch.Tensor]:
    output = model(pixels)
    assert output.vision_tokens is not None
    projected = model.projector(output.last_hidden_state)
    tokens = torch.stack(output.vision_tokens)
    return [output.last_hidden_state, output.pooler_output, projected, tokens, model.view_separator]


@torch.no_grad()
def test_onnx_gives_the_models_numbers(model: DeepEncoderV2, tmp_path: Path) -> None:
    side = 192
    onnxruntime = pytest.importorskip("onnxruntime")
    facts = export_model(model, tmp_path / "encoder.onnx", side)
    assert facts["max_difference"] <= TOLERANCE
    layout = json.loads(facts["layout"])
    assert layout["queries"] == (side // 64) ** 2 and "token_grid" not in layout
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"])
    pixels = torch.randn(3, 3, side, side)
    found = session.run(NAMES, {"pixel_values": pixels.numpy()})
    for ours, theirs in zip(found, expected_outputs(model, pixels), strict=True):
        assert (torch.from_numpy(ours) - theirs).abs().max() <= TOLERANCE


@torch.no_grad()
def test_torch_export_takes_batches_of_any_size(model: DeepEncoderV2, tmp_path: Path) -> None:
    export_model(model, tmp_path / "encoder.pt2", 256, format="torch")
    graph = torch.export.load(tmp_path / "encoder.pt2").module()
    pixels = torch.randn(3, 3, 256, 256)
    for ours, theirs in zip(graph(pixels), expected_outputs(model, pixels), strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE


def test_sizes_without_queries_are_refused(model: DeepEncoderV2, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size must be one of 192, 256, 768, 1024"):
        export_model(model, tmp_path / "encoder.onnx", 640)
