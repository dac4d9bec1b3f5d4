"""What cannot be exported is refused, and so is a graph that differs from the model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig, DeepEncoder, SamEncoder, SamEncoderConfig
from deepencoder.conversion.export import FORMATS, export_model
from deepencoder.conversion.export.checks import compare

from ...conftest import randomize
from ..samples import build, layout_of


def make_clip() -> ClipVisionEncoder:
    return ClipVisionEncoder(ClipVisionEncoderConfig.tiny(num_hidden_layers=1, post_norm="pooled"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_that_differs_is_not_written(format: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / f"encoder{FORMATS[format].suffix}"
    with pytest.raises(ValueError, match="differs from the model"):
        export_model(randomize(make_clip()), path, 64, format, tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_differences_are_relative_to_large_values() -> None:
    small, large = torch.tensor([0.5, -1.0]), torch.tensor([20.0, -1.0])
    assert compare([small + 1e-3], [small], 1.0) == pytest.approx(1e-3, rel=1e-3)
    assert compare([large + 1e-3], [large], 1.0) == pytest.approx(1e-3 / 20, rel=1e-2)
    with pytest.raises(ValueError, match="differs from the model by nan"):
        compare([torch.tensor([float("nan")])], [torch.zeros(1)], 1.0)


def test_what_is_not_just_the_model_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted: Any = make_clip()
    adapted.add_adapter(peft.LoraConfig(r=2, target_modules=["qkv_proj"]))

    class Mine(SamEncoder):
        pass

    wrapped = peft.get_peft_model(make_clip(), peft.LoraConfig(r=2, target_modules=["qkv_proj"]))
    clip_half = DeepEncoder(build(layout_of("deepseek-ocr")).config).clip_encoder
    for model, words in (
        (adapted, "merge adapters"),
        (Mine(SamEncoderConfig.tiny()), "A Mine cannot be exported"),
        (wrapped, "cannot be exported"),
        (clip_half, "takes no pixels"),
        (SamEncoder(SamEncoderConfig.tiny()).to("meta"), "offloaded"),
    ):
        with pytest.raises(ValueError, match=words):
            export_model(model, tmp_path / "model.onnx", 64)
    assert list(tmp_path.iterdir()) == []
