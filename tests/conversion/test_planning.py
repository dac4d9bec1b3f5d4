"""What is known and refused before a tensor is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.conversion.checkpoint import Checkpoint, open_checkpoint
from deepencoder.conversion.converter import convert_checkpoint
from deepencoder.conversion.planning import plan_conversion

from .samples import OTHER_TENSORS, build, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_checkpoints_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    name = "sam_model.blocks.0.mlp.lin1.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name}.*quantised"):
        convert_checkpoint(tmp_path)


def test_only_the_tensors_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR, "model.")
    save_file(tensors | OTHER_TENSORS, tmp_path / "model.safetensors")
    read: list[str] = []
    original = Checkpoint.__getitem__
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda self, name: (read.append(name), original(self, name))[1])
    convert_checkpoint(tmp_path)
    assert sorted(read) == sorted(tensors)


def test_strict_about_the_encoders_own_parts(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    save_file(tensors | {"sam_model.blocks.0.norm3.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm3.*nearest.*sam_model\.blocks\.0\.norm"):
        convert_checkpoint(tmp_path)


def test_what_is_ours_already_is_told_so(tmp_path: Path) -> None:
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_pretrained"):
        convert_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [3 * [None], torch.tensor(3), {}])
def test_fields_that_are_no_values(value: Any, tmp_path: Path) -> None:
    save_file(state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="num_attention_heads"):
        convert_checkpoint(tmp_path, num_attention_heads=value)


def test_the_full_size_layout_of_deepseek_ocr(tmp_path: Path) -> None:
    """The original has 401,372,160 parameters, the model 400,770,048: it has no CLIP patch embedding."""
    with torch.device("meta"):
        model = DeepEncoder(DeepEncoderConfig())
        tensors = state_dict_there(model, DEEPSEEK_OCR, "model.")
        tensors["model.vision_model.embeddings.patch_embedding.weight"] = torch.empty(1024, 3, 14, 14)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    assert sum(tensor.numel() for tensor in tensors.values()) == 401_372_160
    place, header = 0, {}
    for name, tensor in sorted(tensors.items()):
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [place, place + tensor.nbytes]}
        place += tensor.nbytes
    content = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + place)  # A sparse file: its zeros take no space on the disk.
    assert plan_conversion(open_checkpoint(tmp_path)).config.to_dict() == DeepEncoderConfig().to_dict()
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.num_parameters() == 400_770_048
    assert list(conversion.report.left_behind) == ["model.vision_model.embeddings.patch_embedding.weight"]
    assert conversion.report.initialized == [] and conversion.image_processor.mode == "base"
