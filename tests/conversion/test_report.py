"""The report of a conversion."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepencoder.conversion.converter import convert_checkpoint
from deepencoder.conversion.report import ConversionReport

from .samples import build, layout_of, state_dict_there, write_checkpoint

DEEPSEEK_OCR = layout_of("deepseek-ocr")


def test_what_stays_behind_is_reported(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR, "model.")
    patches = "model.vision_model.embeddings.patch_embedding.weight"
    save_file(tensors | {patches: torch.zeros(192, 3, 14, 14)}, tmp_path / "model.safetensors")
    report = convert_checkpoint(tmp_path).report
    assert list(report.left_behind) == [patches] and report.initialized == []


def test_parts_that_are_missing_are_reported(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ("image_newline", "view_seperator")}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "encoder.pth")
    conversion = convert_checkpoint(tmp_path / "encoder.pth")
    assert conversion.report.initialized == ["image_newline", "view_separator"]
    assert conversion.model.config.projection_dim == 40
    assert all(tensor.isfinite().all() for tensor in conversion.model.state_dict().values())


def test_a_report_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "deepseek-ocr")
    report = convert_checkpoint(tmp_path).report
    report.save(tmp_path)
    assert ConversionReport.load(tmp_path) == report
    for content in (b'{"source": "x"}', b"[1]", b"{", b"[" * 100_000, b"\xff" * 5000):
        (tmp_path / "conversion_report.json").write_bytes(content)
        with pytest.raises(ValueError, match="conversion_report.json is damaged") as error:
            ConversionReport.load(tmp_path)
        assert len(str(error.value)) < 500
