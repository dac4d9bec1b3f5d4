"""The proof that a conversion carries: it passes for every layout, and it can fail."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deepencoder import DeepEncoder
from deepencoder.conversion import layouts, verification
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.layouts import LAYOUTS, Layout
from deepencoder.conversion.verification import computing_in_float32

from .samples import build, inputs_of, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.slug)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_layout_is_verified(layout: Layout, dtype: torch.dtype, tmp_path: Path) -> None:
    if layout.pixels not in ("clip", "vit"):
        pytest.importorskip("transformers.models.unlimited_ocr")
    tensors = {name: tensor.to(dtype) for name, tensor in state_dict_there(build(layout), layout).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    report = convert_to_folder(tmp_path, tmp_path / "target", verify=True)
    assert report.verification is not None
    outputs = report.verification["outputs"]
    assert outputs
    for name, figures in outputs.items():
        print(layout.slug, dtype, name, figures)
        assert 0 <= figures["mean_difference"] <= figures["max_difference"] < 1e-5
        assert figures["largest_value"] > 0.5


def wrong_rows(layout: Layout, one: str, other: str) -> Layout:
    """The layout with two names there exchanged."""
    exchange = {one: other, other: one}
    table = tuple((row[0], *(exchange.get(name, name) for name in row[1:])) for row in layout.table)
    assert table != layout.table
    return layouts.Layout(**{**vars(layout), "table": table})


@pytest.mark.parametrize(
    ("slug", "one", "other"),
    [
        ("deepseek-ocr", "sam_model.blocks.{i}.norm1.*", "sam_model.blocks.{i}.norm2.*"),
        ("deepseek-ocr", "image_newline", "view_seperator"),
        ("sam", "image_encoder.neck.1.*", "image_encoder.neck.3.*"),
        ("got-ocr-transformers", "vision_tower.neck.*", "vision_tower.neck.*"),
    ],
)
def test_a_wrong_table_is_found_out(
    slug: str, one: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers.models.unlimited_ocr")
    layout = layout_of(slug)
    save_file(state_dict_there(build(layout), layout), tmp_path / "model.safetensors")
    if one == other:  # nothing is wrong with the table: with the model, then
        original = verification.compute_converted

        def compute(model: Any, initialized: list[str]) -> dict[str, torch.Tensor]:
            return {name: value + 0.01 for name, value in original(model, initialized).items()}

        monkeypatch.setattr("deepencoder.conversion.from_original.compute_converted", compute)
    else:
        wrong = wrong_rows(layout, one, other)
        monkeypatch.setattr(layouts, "LAYOUTS", tuple(wrong if item is layout else item for item in LAYOUTS))
    with pytest.raises(ValueError, match="nothing is written"):
        convert_to_folder(tmp_path, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    report = convert_to_folder(tmp_path, tmp_path / "target", verify=False)
    assert report.verification == {"not_run": "not wanted"}


def test_what_cannot_be_verified_is_converted_and_says_so(tmp_path: Path) -> None:
    reason = "not finite"
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    tensors["sam_model.neck.0.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=reason):
        convert_to_folder(tmp_path, tmp_path / "target", verify=True)
    assert not (tmp_path / "target").exists()
    report = convert_to_folder(tmp_path, tmp_path / "target")
    assert report.verification is not None and reason in report.verification["not_run"]
    assert DeepEncoder.from_pretrained(tmp_path / "target").config.projection_dim == 40


def test_without_a_class_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError

    monkeypatch.setattr(verification, "_unlimited_ocr", missing)
    save_file(state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR), tmp_path / "model.safetensors")
    report = convert_to_folder(tmp_path, tmp_path / "target")
    assert report.verification is not None and "has no Unlimited-OCR" in report.verification["not_run"]


@torch.no_grad()
def test_half_precision_weights_compute_in_float32() -> None:
    model = build(DEEPSEEK_OCR).bfloat16()
    pixels = inputs_of(model).bfloat16()
    narrow = model(pixels).last_hidden_state
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with computing_in_float32(model):
        wide = model(pixels).last_hidden_state
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    assert narrow.dtype == model.dtype == torch.bfloat16 and wide.dtype == torch.float32
    expected = model.float()(pixels).last_hidden_state
    torch.testing.assert_close(wide, expected, atol=1e-6, rtol=0)
    assert (narrow - expected).abs().max() > 1e-3


def test_weights_come_back_after_an_error() -> None:
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError), computing_in_float32(model):
        model(torch.zeros(1, 3))
    assert model.weight.dtype == torch.bfloat16
