"""The proof that a conversion is right: it passes for every layout, and it can fail."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import DeepEncoder
from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.from_original import convert_to_folder, write_conversion
from deepencoder.conversion.layouts import LAYOUTS, Layout
from deepencoder.conversion.planning import ConversionPlan, plan_conversion

from .samples import build, layout_of, state_dict_there, write_checkpoint

DEEPSEEK_OCR = layout_of("deepseek-ocr")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.slug)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_layout_is_verified(layout: Layout, dtype: torch.dtype, tmp_path: Path) -> None:
    if layout.model_type != "deepencoder_clip_vision":
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


def exchanged_rows(layout: Layout, one: str, other: str) -> Layout:
    """Return the layout with two names of the original exchanged."""
    exchange = {one: other, other: one}
    table = tuple(replace(row, there=tuple(exchange.get(name, name) for name in row.there)) for row in layout.table)
    assert table != layout.table
    return replace(layout, table=table)


def assert_refused(plan: ConversionPlan, folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match="nothing is written"):
        write_conversion(plan, "source", folder / "target")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("slug", "one", "other"),
    [
        ("deepseek-ocr", "sam_model.blocks.{i}.norm1.*", "sam_model.blocks.{i}.norm2.*"),
        ("deepseek-ocr", "image_newline", "view_seperator"),
        ("sam", "image_encoder.neck.1.*", "image_encoder.neck.3.*"),
    ],
)
def test_a_wrong_table_is_found(slug: str, one: str, other: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers.models.unlimited_ocr")
    write_checkpoint(tmp_path, slug)
    wrong = exchanged_rows(layout_of(slug), one, other)
    plan = plan_conversion(open_checkpoint(tmp_path), layouts=[wrong])
    assert_refused(plan, tmp_path)
    report = write_conversion(plan, "source", tmp_path / "target", verify=False)
    assert report.verification == {"not_run": "not wanted"}


def with_reference(plan: ConversionPlan, **changes: Any) -> ConversionPlan:
    """Return the plan with another way to compare."""
    return replace(plan, target=replace(plan.target, reference=replace(plan.target.reference, **changes)))


def test_a_wrong_model_is_found(tmp_path: Path) -> None:
    pytest.importorskip("transformers.models.unlimited_ocr")
    write_checkpoint(tmp_path, "got-ocr-transformers")
    plan = plan_conversion(open_checkpoint(tmp_path))

    def shifted(*args: Any) -> dict[str, torch.Tensor]:
        return {name: value + 0.01 for name, value in plan.target.reference.ours(*args).items()}

    assert_refused(with_reference(plan, ours=shifted), tmp_path)
    assert_refused(with_reference(plan, ours=lambda *args: {}), tmp_path)
    assert "outputs" in (write_conversion(plan, "source", tmp_path / "target").verification or {})


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


def test_without_a_class_to_compare_with(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "deepseek-ocr")
    plan = plan_conversion(open_checkpoint(tmp_path))
    older = with_reference(plan, find_original=lambda: importlib.import_module("transformers.models.of_tomorrow"))
    report = write_conversion(older, "source", tmp_path / "target")
    assert report.verification is not None and "has no Unlimited-OCR" in report.verification["not_run"]


def test_a_tower_without_patch_embedding_is_converted_and_not_verified(tmp_path: Path) -> None:
    """Such towers read `patch_embeds` only."""
    layout = layout_of("deepseek-ocr-clip")
    tensors = state_dict_there(build(layout), layout)
    rest = {name: tensor for name, tensor in tensors.items() if "patch_embedding" not in name}
    assert len(rest) < len(tensors)
    save_file(rest, tmp_path / "model.safetensors")
    report = convert_to_folder(tmp_path, tmp_path / "target")
    assert report.verification == {"not_run": "the tower has no patch embedding, so it cannot read pixels"}
    with pytest.raises(ValueError, match="cannot be verified"):
        convert_to_folder(tmp_path, tmp_path / "other", verify=True)
