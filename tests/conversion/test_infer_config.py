"""Configurations, from the shapes of tensors."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from deepencoder.conversion.converter import convert_checkpoint
from deepencoder.conversion.infer_config import KNOWN_HEADS, sam_config_from_shapes

from .samples import build, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


def test_known_heads_are_those_of_the_published_towers() -> None:
    assert KNOWN_HEADS[1024] == 16 and KNOWN_HEADS[768] == 12 and KNOWN_HEADS[1280] == 16
    assert all(width % heads == 0 for width, heads in KNOWN_HEADS.items())


def test_blocks_that_cannot_be_told_apart() -> None:
    model = build(layout_of("sam"))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for index in range(3):
        shapes[f"layers.{index}.attn.rel_pos_h"] = (15, 16)  # 2 * 8 - 1: the map has 8 rows.
    with pytest.raises(ValueError, match="cannot be told apart"):
        sam_config_from_shapes(shapes, {})
    config = sam_config_from_shapes(shapes, {"window_size": 8, "global_attn_indexes": [1]})
    assert config.global_attn_indexes == (1,) and config.window_size == 8


def test_blocks_that_are_missing(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    for missing, words in (("sam_model.blocks.1.", "numbered"), ("sam_model.patch_embed.", "incomplete")):
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(missing)}
        save_file(rest, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=words):
            convert_checkpoint(tmp_path)


def test_a_tensor_that_is_missing_inside_of_a_part(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    for name in ("sam_model.blocks.1.attn.qkv.weight", "vision_model.pre_layrnorm.bias", "sam_model.neck.0.weight"):
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="incomplete"):
            convert_checkpoint(tmp_path)
