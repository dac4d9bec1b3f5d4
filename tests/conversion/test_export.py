"""Exported graphs give the model's numbers in other runtimes, for batches of any size."""

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
from deepencoder.conversion.export import FORMATS, TOLERANCE, export_model, fix_image_size
from deepencoder.modeling.catalog import MODELS

from ..conftest import randomize
from .samples import build, layout_of

onnxruntime = pytest.importorskip("onnxruntime")
# Exporting takes time for each block: one windowed block, one global block and one of CLIP suffice.
SAM = SamEncoderConfig.tiny(num_hidden_layers=2)
CLIP = ClipVisionEncoderConfig.tiny(num_hidden_layers=1, image_size=256, patch_size=SAM.total_stride)
TOWER: dict[str, Any] = {"num_hidden_layers": 1}
HALVES = {
    "sam": lambda: SamEncoder(SAM),
    "clip": lambda: ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**TOWER, post_norm="pooled")),
    "vit": lambda: ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**TOWER, post_norm="all", use_patch_bias=True)),
}


@pytest.fixture
def shallow_model() -> DeepEncoder:
    """A DeepEncoder with one block of each kind."""
    model = randomize(DeepEncoder(DeepEncoderConfig(sam_config=SAM, clip_config=CLIP, projection_dim=48)))
    assert isinstance(model, DeepEncoder)
    return model


def open_onnx(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("mode", "side", "batch"), [("tiny", 512, 1), ("base", 1024, 2), ("tiles", 640, 6)])
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
    export_model(model, tmp_path / "half.onnx", 128)
    pixels = torch.randn(2, 3, 128, 128)
    found = open_onnx(tmp_path / "half.onnx").run(["last_hidden_state"], {"pixel_values": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found[0]), model(pixels).last_hidden_state, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_torch_export(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    facts = export_model(shallow_model, tmp_path / "encoder.pt2", 512, "torch")
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "encoder.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"])["image_size"] == "512" and facts["max_difference"] <= 1e-5
    for batch in (1, 5):
        pixels = torch.randn(batch, 3, 512, 512)
        fused, *_, tokens = program.module()(pixels)
        expected = shallow_model(pixels)
        torch.testing.assert_close(fused, expected.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens, torch.stack(expected.vision_tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_fixing_the_image_size_changes_no_number(shallow_model: DeepEncoder) -> None:
    for side in (192, 256, 512):
        pixels = torch.randn(1, 3, side, side)
        fixed = fix_image_size(shallow_model, side)
        assert fixed.config.sam_config.image_size == side and shallow_model.config.sam_config.image_size == 256
        assert torch.equal(fixed(pixels).last_hidden_state, shallow_model(pixels).last_hidden_state)
    for size in (0, -16, 100):
        with pytest.raises(ValueError, match="image_size"):
            fix_image_size(shallow_model, size)


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_that_differs_is_not_written(format: str, tmp_path: Path) -> None:
    model = randomize(HALVES["clip"]())
    path = tmp_path / f"encoder{FORMATS[format]}"
    with pytest.raises(ValueError, match="differs from the model"):
        export_model(model, path, 64, format, tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be one of 'onnx', 'torch', got 'tensorrt'"):
        export_model(shallow_model, tmp_path / "encoder.onnx", 128, "tensorrt")


def test_what_is_not_just_the_model_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted: Any = HALVES["clip"]()
    adapted.add_adapter(peft.LoraConfig(r=2, target_modules=["qkv_proj"]))

    class Mine(SamEncoder):
        pass

    wrapped = peft.get_peft_model(HALVES["clip"](), peft.LoraConfig(r=2, target_modules=["qkv_proj"]))
    clip_half = DeepEncoder(build(layout_of("deepseek-ocr")).config).clip_encoder
    for model, words in (
        (adapted, "merge adapters"),
        (Mine(SAM), "A Mine cannot be exported"),
        (wrapped, "cannot be exported"),
        (clip_half, "takes no pixels"),
        (HALVES["sam"]().to("meta"), "offloaded"),
    ):
        with pytest.raises(ValueError, match=words):
            export_model(model, tmp_path / "model.onnx", 64)
    assert list(tmp_path.iterdir()) == []
