"""DeepSeek-OCR-2 from its own checkpoints: verification, SAM alone, the way back, and what is downloaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import DeepEncoder, DeepEncoderImageProcessor, DeepEncoderV2, SamEncoder
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.report import ConversionReport
from deepencoder.conversion.restoration import restore_checkpoint

from ..conftest import randomize
from ..hub_server import Hub
from .hub_samples import sent_weights, size_of
from .samples import OTHER_TENSORS, assert_same, build, layout_of, state_dict_there

SLUGS = ["deepseek-ocr-2", "deepseek-ocr-2-transformers"]


def write_original(folder: Path, slug: str, others: dict[str, torch.Tensor] = OTHER_TENSORS) -> Any:
    """Write a checkpoint with a language model; return the encoder in it."""
    layout = layout_of(slug)
    model = build(layout)
    folder.mkdir(exist_ok=True)
    save_file(state_dict_there(model, layout, "model.") | others, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_vl_v2"}))
    return model


@pytest.mark.parametrize("slug", SLUGS)
def test_conversions_are_verified_with_transformers(slug: str, tmp_path: Path) -> None:
    model = write_original(tmp_path / "original", slug)
    report = convert_to_folder(tmp_path / "original", tmp_path / "encoder", verify=True)
    assert report.verification is not None
    assert report.verification["reference"].startswith("DeepseekOcr2Model")
    assert set(report.verification["outputs"]) == {"queries", "vision tokens"}
    assert report.initialized == [] and report.left_behind == {}
    assert_same(DeepEncoderV2.from_pretrained(tmp_path / "encoder"), model)
    assert DeepEncoderImageProcessor.from_pretrained(tmp_path / "encoder").mode == "v2"


def test_a_wrong_conversion_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that read from each other in the wrong order would give other numbers."""
    write_original(tmp_path / "original", "deepseek-ocr-2")
    monkeypatch.setattr(
        "deepencoder.modeling.query_encoder.create_causal_mask", lambda *args, **kwargs: None, raising=True
    )
    with pytest.raises(ValueError, match="queries differ from DeepseekOcr2Model's"):
        convert_to_folder(tmp_path / "original", tmp_path / "encoder", verify=True)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize("slug", SLUGS)
def test_sam_alone(slug: str, tmp_path: Path) -> None:
    original = write_original(tmp_path / "original", slug)
    sam = SamEncoder.from_original(tmp_path / "original")
    assert_same(sam, original.sam_encoder)
    with pytest.raises(ValueError, match="holds a 'deepencoder_v2', not a 'deepencoder'"):
        DeepEncoder.from_original(tmp_path / "original")
    randomize(sam, seed=1).save_pretrained(tmp_path / "sam")  # type: ignore[operator]
    report = restore_checkpoint(tmp_path / "sam", tmp_path / "original", tmp_path / "back", slug)
    assert len(report.replaced) == len(sam.state_dict())
    back = DeepEncoderV2.from_original(tmp_path / "back")
    assert_same(back.sam_encoder, sam)
    assert_same(back.query_encoder, original.query_encoder)


def test_a_fine_tuned_encoder_goes_home(tmp_path: Path) -> None:
    model = randomize(write_original(tmp_path / "original", "deepseek-ocr-2"), seed=1)
    model.save_pretrained(tmp_path / "encoder")  # type: ignore[operator]
    report = restore_checkpoint(tmp_path / "encoder", tmp_path / "original", tmp_path / "back", "deepseek-ocr-2")
    assert report.unchanged == len(OTHER_TENSORS) and report.dtype_changes == {}
    assert_same(DeepEncoderV2.from_original(tmp_path / "back"), model)


def test_the_encoder_and_its_sam_are_downloaded_alone(hub: Hub, tmp_path: Path) -> None:
    repo = "someone/deepseek-ocr-2"
    language_model = {"lm_head.weight": torch.zeros(2**21)}
    model = write_original(hub.repos.setdefault(repo, tmp_path / "repo"), "deepseek-ocr-2", language_model)
    cache = {"cache_dir": tmp_path / "cache"}
    assert_same(SamEncoder.from_original(repo, **cache), model.sam_encoder)
    assert sent_weights(hub) <= 1.2 * size_of(model.sam_encoder)
    hub.forget()
    assert_same(DeepEncoderV2.from_original(repo, **cache), model)
    assert size_of(model) - size_of(model.sam_encoder) <= sent_weights(hub) <= 1.01 * size_of(model)
    hub.forget()
    assert_same(SamEncoder.from_original(repo, **cache), model.sam_encoder)
    assert_same(DeepEncoderV2.from_original(repo, **cache), model)
    assert sent_weights(hub) == 0, "both conversions are cached"
    reports = [ConversionReport.load(path.parent) for path in (tmp_path / "cache").rglob("conversion_report.json")]
    assert {report.model_type for report in reports} == {"deepencoder_sam", "deepencoder_v2"}
