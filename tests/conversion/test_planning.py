"""What is known and refused before a tensor is read."""

import json
from dataclasses import replace
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


@pytest.mark.parametrize(
    ("known", "other"),
    [
        ("model.view_seperator", "model.view_separator"),
        ("model.view_seperator", "view_seperator"),
        ("model.image_newline", "language_model.image_newline"),
        ("model.image_newline", "model.image_new_line"),
        ("model.projector.layers.bias", "model.projectors.layers.bias"),
    ],
)
def test_other_spellings_are_not_newly_initialised(known: str, other: str, tmp_path: Path) -> None:
    """MLX spells the separator correctly; it would have been random."""
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR, "model.")
    tensors[other] = tensors.pop(known)
    save_file(tensors | OTHER_TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"no tensor '{known}', but one named '{other}'"):
        plan_conversion(open_checkpoint(tmp_path))


def test_parts_that_are_missing_under_any_name(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR, "model.")
    del tensors["model.view_seperator"]
    save_file(tensors | OTHER_TENSORS, tmp_path / "model.safetensors")
    assert plan_conversion(open_checkpoint(tmp_path)).absent == ["view_separator"]


def plan_of(tensors: dict[str, torch.Tensor], folder: Path) -> Any:
    """Plan a conversion with empty tensors of these shapes, none of which may be read."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    checkpoint.tensors = {name: replace(tensor, read=None) for name, tensor in checkpoint.tensors.items()}
    return plan_conversion(checkpoint)


@pytest.mark.parametrize("slug", ["deepseek-ocr", "sam", "got-ocr-transformers", "clip", "vit-timm"])
def test_convolutions_as_mlx_stores_them_are_refused(slug: str, tmp_path: Path) -> None:
    layout = layout_of(slug)
    tensors = state_dict_there(build(layout), layout)
    assert plan_of(tensors, tmp_path).absent == [] or slug == "sam"
    convolutions = [name for name, tensor in tensors.items() if tensor.ndim == 4 and tensor.shape[-1] > 1]
    for chosen in (convolutions, *([name] for name in convolutions if "pos" not in name)):
        moved = {name: tensor.permute(0, 2, 3, 1) if name in chosen else tensor for name, tensor in tensors.items()}
        with pytest.raises(ValueError, match=r"MLX|has shape .* needs"):
            plan_of(moved, tmp_path)


@pytest.mark.parametrize(
    ("slug", "name"),
    [
        ("clip-transformers", "vision_model.encoder.layers.1.self_attn.{}_proj.weight"),
        ("clip-vision-transformers", "encoder.layers.0.self_attn.{}_proj.bias"),
        ("vit-transformers-memory", "layers.1.attention.{}_proj.weight"),
    ],
)
def test_queries_keys_and_values_have_one_shape(slug: str, name: str, tmp_path: Path) -> None:
    layout = layout_of(slug)
    tensors = state_dict_there(build(layout), layout)
    for part in "qkv":
        shorter = tensors | {name.format(part): tensors[name.format(part)][:-1]}
        with pytest.raises(ValueError, match=r"q_proj.* must have the same shape, not"):
            plan_of(shorter, tmp_path)


def test_wrong_and_missing_tensors_are_refused_without_reading(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    name = "vision_model.transformer.layers.1.self_attn.out_proj.weight"
    with pytest.raises(ValueError, match=rf"{name} has shape .*, but clip_encoder.* needs"):
        plan_of(tensors | {name: tensors[name][:-1]}, tmp_path)
    with pytest.raises(ValueError, match=r"incomplete: it has no tensors for clip_encoder.*out_proj"):
        plan_of({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path)
    with pytest.raises(ValueError, match="no place for sam_model.blocks.0.attn.rel_pos_d"):
        plan_of(tensors | {"sam_model.blocks.0.attn.rel_pos_d": torch.ones(1)}, tmp_path)


def test_a_damaged_image_processor_is_refused_without_reading(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    (tmp_path / "preprocessor_config.json").write_text('{"image_std": [0, 0, 0]}')
    with pytest.raises(ValueError, match="image processor's file beside the checkpoint is damaged"):
        plan_of(tensors, tmp_path)


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
