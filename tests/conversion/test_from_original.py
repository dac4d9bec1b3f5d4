"""Models from checkpoints of other code in one step, from files on this machine."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import ClipVisionEncoder, DeepEncoder, SamEncoder

from .samples import assert_same, inputs_of, layout_of, state_dict_there, write_checkpoint

DEEPSEEK_OCR = layout_of("deepseek-ocr")


def test_each_class_loads_its_own(tmp_path: Path) -> None:
    for slug, model_class in (("deepseek-ocr", DeepEncoder), ("got-ocr", SamEncoder), ("clip", ClipVisionEncoder)):
        expected = write_checkpoint(tmp_path / slug, slug)
        model = model_class.from_original(tmp_path / slug)
        assert type(model) is model_class and not model.training and model.dtype == torch.float32
        assert_same(model, expected)
        for other in {DeepEncoder, SamEncoder, ClipVisionEncoder} - {model_class}:
            with pytest.raises(ValueError, match=f"holds a '{model_class.config_class.model_type}', not a"):
                other.from_original(tmp_path / slug)


@torch.no_grad()
def test_options_of_from_pretrained_are_taken(tmp_path: Path) -> None:
    expected = write_checkpoint(tmp_path, "deepseek-ocr")
    assert DeepEncoder.from_original(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    model = DeepEncoder.from_original(tmp_path / "model.safetensors", attn_implementation="eager", device_map="cpu")
    assert model.config.sam_config._attn_implementation == "eager"
    pixels = inputs_of(model)
    torch.testing.assert_close(model(pixels).last_hidden_state, expected(pixels).last_hidden_state)
    assert DeepEncoder.from_original(tmp_path, num_attention_heads=6).config.clip_config.num_attention_heads == 6


def test_the_file_may_go_when_the_model_is_there(tmp_path: Path) -> None:
    expected = write_checkpoint(tmp_path, "deepseek-ocr")
    torch.save(state_dict_there(expected, DEEPSEEK_OCR), tmp_path / "model.pth")
    from_pickle = DeepEncoder.from_original(tmp_path / "model.pth")
    with open(tmp_path / "model.pth", "r+b") as file:
        file.write(bytes((tmp_path / "model.pth").stat().st_size))
    assert_same(from_pickle, expected)
    model = DeepEncoder.from_original(tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(bytes((tmp_path / "model.safetensors").stat().st_size))
    assert_same(model, expected)


def test_verification_can_be_demanded(tmp_path: Path) -> None:
    pytest.importorskip("transformers.models.unlimited_ocr")
    expected = write_checkpoint(tmp_path, "deepseek-ocr")
    assert_same(DeepEncoder.from_original(tmp_path, verify=True), expected)
    tensors = state_dict_there(expected, DEEPSEEK_OCR)
    tensors["image_newline"][0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be verified"):
        DeepEncoder.from_original(tmp_path, verify=True)


def test_a_converted_model_is_like_any_other(tmp_path: Path) -> None:
    expected = write_checkpoint(tmp_path / "original", "deepseek-ocr")
    DeepEncoder.from_original(tmp_path / "original").save_pretrained(tmp_path / "saved")
    assert_same(DeepEncoder.from_pretrained(tmp_path / "saved"), expected)
