"""Exported graphs give the model's numbers in other runtimes, for batches of any size, and say where tokens lie."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.conversion.export import TOLERANCE, export_model
from deepencoder.conversion.export.exporting import describe_layout
from deepencoder.conversion.export.openvino_format import METADATA
from deepencoder.modeling.catalog import MODELS

from ...conftest import randomize

onnxruntime = pytest.importorskip("onnxruntime")
TOWER: dict[str, Any] = {"num_hidden_layers": 1}
HALVES = {
    "sam": lambda: SamEncoder(SamEncoderConfig.tiny(num_hidden_layers=2)),
    "clip": lambda: ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**TOWER, post_norm="pooled")),
    "vit": lambda: ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**TOWER, post_norm="all", use_patch_bias=True)),
}


def open_onnx(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("mode", "side", "batch"), [("base", 1024, 2), ("tiles", 640, 6)])
@torch.no_grad()
def test_onnx_gives_the_models_numbers(
    shallow_model: DeepEncoder, mode: str, side: int, batch: int, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.onnx"
    facts = export_model(shallow_model, path, side)
    assert facts["max_difference"] <= TOLERANCE
    session = open_onnx(path)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["image_size"] == str(side) and metadata["opset"] == "18" and metadata["tolerance"] == "0.0001"
    assert set(json.loads(metadata["outputs"])) == {output.name for output in session.get_outputs()}
    assert isinstance(session.get_inputs()[0].shape[0], str) and session.get_inputs()[0].shape[1:] == [3, side, side]
    pixels = torch.randn(batch, 3, side, side)
    expected = shallow_model(pixels)
    names = list(MODELS["deepencoder"].exported_outputs)
    found = dict(zip(names, map(torch.from_numpy, session.run(names, {"pixel_values": pixels.numpy()})), strict=True))
    reference = {
        "last_hidden_state": expected.last_hidden_state,
        "pooler_output": expected.pooler_output,
        "projected_tokens": shallow_model.projector(expected.last_hidden_state),
        "vision_tokens": torch.stack(expected.vision_tokens),
        "image_newline": shallow_model.image_newline,
        "view_separator": shallow_model.view_separator,
    }
    assert set(reference) == set(found)
    for name, values in reference.items():
        difference = (found[name] - values).abs().max().item()
        print(f"{mode}, {name}: {difference:.1e}")
        assert found[name].shape == values.shape and difference <= TOLERANCE


@pytest.mark.parametrize("kind", HALVES)
@torch.no_grad()
def test_the_halves(kind: str, tmp_path: Path) -> None:
    model: Any = randomize(HALVES[kind]())
    facts = export_model(model, tmp_path / "half.onnx", 128)
    session = open_onnx(tmp_path / "half.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["layout"]) == json.loads(facts["layout"]) == describe_layout(model.config, 128)
    pixels = torch.randn(2, 3, 128, 128)
    found = session.run(["last_hidden_state"], {"pixel_values": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found[0]), model(pixels).last_hidden_state, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_torch_export(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    facts = export_model(shallow_model, tmp_path / "encoder.pt2", 512, "torch")
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "encoder.pt2", extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata["image_size"] == "512" and facts["max_difference"] <= 1e-5
    names = list(json.loads(metadata["outputs"]))
    for batch in (1, 5):
        pixels = torch.randn(batch, 3, 512, 512)
        found = dict(zip(names, program.module()(pixels), strict=True))
        expected = shallow_model(pixels)
        torch.testing.assert_close(found["last_hidden_state"], expected.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(found["vision_tokens"], torch.stack(expected.vision_tokens), atol=1e-5, rtol=0)
        assert torch.equal(found["image_newline"], shallow_model.image_newline)
        assert torch.equal(found["view_separator"], shallow_model.view_separator)


@torch.no_grad()
def test_openvino(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    facts = export_model(shallow_model, tmp_path / "encoder.xml", 256, "openvino")
    assert facts["max_difference"] <= 1e-5 and {path.name for path in tmp_path.iterdir()} == {
        "encoder.xml",
        "encoder.bin",
    }
    graph = openvino.Core().read_model(tmp_path / "encoder.xml")
    metadata = {name: value.astype(str) for name, value in graph.get_rt_info(METADATA).astype(dict).items()}
    assert metadata["image_size"] == "256"
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = torch.randn(3, 3, 256, 256)
    found, expected = compiled({"pixel_values": pixels.numpy()}), shallow_model(pixels)
    assert set(json.loads(metadata["outputs"])) == {name for port in graph.outputs for name in port.get_names()}
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(torch.from_numpy(found[name]), expected[name], atol=1e-5, rtol=0)
    tokens = torch.from_numpy(found["vision_tokens"])
    torch.testing.assert_close(tokens, torch.stack(expected.vision_tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_layout_is_that_of_the_tokens() -> None:
    for config, side in (
        (DeepEncoderConfig.tiny(), 192),
        (SamEncoderConfig.tiny(), 200 - 200 % 16),  # not a multiple of the stride
        (SamEncoderConfig.tiny(downsample_channels=()), 128),
        (ClipVisionEncoderConfig.tiny(), 64),
    ):
        layout = describe_layout(config, side)
        model: Any = MODELS[config.model_type].model_class(config).eval()
        output = model(torch.randn(1, 3, side, side)).last_hidden_state
        rows, columns = layout["token_grid"]
        is_map, has_class_token = output.ndim == 4, config.model_type == "deepencoder_clip_vision"
        assert (output[0, 0].numel() if is_map else output.shape[1] - has_class_token) == rows * columns
        assert layout["token_stride"] * (rows - 1) < side <= layout["token_stride"] * rows
        assert ("vision_tokens" in layout) == (config.model_type == "deepencoder")


def test_unknown_formats(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be one of 'onnx', 'openvino', 'torch', got 'tensorrt'"):
        export_model(shallow_model, tmp_path / "encoder.onnx", 128, "tensorrt")
