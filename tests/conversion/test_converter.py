"""Models that are made from checkpoints: every layout, dtypes, and what is saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import DeepEncoder
from deepencoder.configuration.atomic_files import new_folder
from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.converter import convert_checkpoint, save_converted
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.layouts import LAYOUTS, Layout, recognize
from deepencoder.conversion.report import NOT_A_PART

from .samples import OTHER_TENSORS, assert_same, build, inputs_of, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.slug)
@pytest.mark.parametrize("prefix", ["", "model."])
@torch.no_grad()
def test_every_layout_comes_back_bit_for_bit(layout: Layout, prefix: str, tmp_path: Path) -> None:
    model = build(layout)
    tensors = state_dict_there(model, layout, prefix)
    others = OTHER_TENSORS if layout.claims != ("",) else {}
    # Blocks of transformers' ViT have the names of blocks of DeepSeek-OCR's language model.
    others = {name: tensor for name, tensor in others.items() if not name.startswith(f"{prefix}layers.")}
    assert recognize(tensors | others) == (layout, prefix)
    save_file(tensors | others, tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path)
    report = conversion.report
    assert type(conversion.model) is type(model) and report.layout == layout.name
    assert report.left_behind == {} and report.not_finite == [] and report.dtype_changes == {}
    assert report.unused == dict.fromkeys(others, NOT_A_PART)
    assert sorted(name for names in report.mapped.values() for name in names) == sorted(tensors)
    without_compressor = bool(layout.family.absent_parts)
    assert bool(report.initialized) == without_compressor
    assert all(name.startswith("compressor.") for name in report.initialized)
    converted = conversion.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted[name], tensor), name
    if not without_compressor:
        pixels = inputs_of(model)
        ours, theirs = conversion.model.eval()(pixels), model(pixels)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)


def test_the_dtype_is_kept_and_nans_are_reported(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR).items()}
    tensors["sam_model.neck.0.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.dtype == torch.bfloat16 and conversion.report.dtype == "bfloat16"
    assert conversion.report.not_finite == ["sam_encoder.neck.conv1.weight"]


def test_mixed_dtypes_become_the_one_that_holds_all(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(mixed, tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.dtype == torch.float32
    changes = conversion.report.dtype_changes
    assert changes["sam_model.pos_embed"] == ["bfloat16", "float32"]
    assert set(changes) == {name for name in tensors if "norm" not in name}


def test_narrower_dtypes(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    tensors["projector.layers.bias"][0] = 1e6
    save_file(tensors, tmp_path / "model.safetensors")
    report = convert_to_folder(tmp_path, tmp_path / "bf16", dtype="bfloat16")
    assert report.dtype == "bfloat16" and report.not_finite == [] and len(report.dtype_changes) == len(tensors)
    assert "outputs" in (report.verification or {}) or "has no Unlimited-OCR" in str(report.verification)
    report = convert_to_folder(tmp_path, tmp_path / "fp16", dtype=torch.float16, verify=False)
    assert report.not_finite == ["projector.layers.0.bias"]
    for dtype in ("nonsense", torch.int8, "int8", 3):
        with pytest.raises(ValueError, match="dtype"):
            convert_checkpoint(tmp_path, dtype=dtype)


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    model = build(DEEPSEEK_OCR)
    save_file(state_dict_there(model, DEEPSEEK_OCR), tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path / "model.safetensors")
    target = tmp_path / "new" / "target"
    with new_folder(target) as temporary:
        save_converted(conversion, temporary, max_shard_size="500KB")
        assert not target.exists()
    assert len(list(target.glob("model-*.safetensors"))) > 1
    assert (target / "preprocessor_config.json").is_file()
    assert json.loads((target / "conversion_report.json").read_text())["layout"] == "DeepSeek-OCR"
    assert_same(DeepEncoder.from_pretrained(target), model)
    with pytest.raises(FileExistsError, match="target"), new_folder(target):
        pass
    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "other") as temporary:
        (temporary / "config.json").write_text("half")
        raise OSError("the disk is full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "new"]


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    tensors["view_seperator"] = tensors["image_newline"]
    torch.save(tensors, tmp_path / "encoder.pth")
    convert_to_folder(tmp_path / "encoder.pth", tmp_path / "target")
    model = DeepEncoder.from_pretrained(tmp_path / "target")
    assert torch.equal(model.view_separator, model.image_newline)


def test_opening_reads_nothing(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in tensors.items())
