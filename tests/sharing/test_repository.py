"""What the repository of a model holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.sharing.repository import check_shareable, collect_repository, complete_folder, is_weights


def test_files_written_by_hand_are_kept(converted: Path) -> None:
    (converted / "README.md").write_text("my own words")
    (converted / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    complete_folder(converted)
    assert (converted / "README.md").read_text() == "my own words"
    assert "auto_map" not in json.loads((converted / "preprocessor_config.json").read_text())
    assert "auto_map" in json.loads((converted / "config.json").read_text())


def test_a_generated_card_is_replaced(tmp_path: Path) -> None:
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(tmp_path, self_contained=True)
    SamEncoder(SamEncoderConfig.tiny()).save_pretrained(tmp_path, self_contained=True)
    assert "Model type `deepencoder_sam`" in (tmp_path / "README.md").read_text()


def test_halves_have_a_card_without_picture(tmp_path: Path) -> None:
    for model in (SamEncoder(SamEncoderConfig.tiny()), ClipVisionEncoder(ClipVisionEncoderConfig.tiny())):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder, self_contained=True)
        card = ModelCard.load(folder / "README.md")
        assert model.config.model_type in card.text and "Vision tokens" not in card.text
        assert not (folder / "encoding.png").exists()
    processor = json.loads((tmp_path / "ClipVisionEncoder" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 64, "width": 64} and processor["do_pad"] is False


def test_a_half_without_pixels_has_no_image_processor(tmp_path: Path) -> None:
    DeepEncoder(DeepEncoderConfig.tiny()).clip_encoder.save_pretrained(tmp_path, self_contained=True)
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert "outputs = model(patch_embeds=feature_map)" in (tmp_path / "README.md").read_text()


def test_completing_a_folder_changes_neither_weights_nor_training_mode(tmp_path: Path) -> None:
    model = DeepEncoder(DeepEncoderConfig.tiny()).bfloat16().train()
    model.sam_encoder.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, self_contained=True)
    assert model.training and model.clip_encoder.training and not model.sam_encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_models_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    class Mine(SamEncoder):
        pass

    adapted: Any = ClipVisionEncoder(ClipVisionEncoderConfig.tiny())
    peft = pytest.importorskip("peft")
    adapted.add_adapter(peft.LoraConfig(r=2, target_modules=["qkv_proj"]))
    quantised: Any = SamEncoder(SamEncoderConfig.tiny())
    quantised.hf_quantizer = object()
    for refused, words in (
        (Mine(SamEncoderConfig.tiny()), "Mine cannot be shared"),
        (adapted, "adapters"),
        (quantised, "quantised"),
    ):
        with pytest.raises(ValueError, match=words):
            check_shareable(refused)
        with pytest.raises(ValueError, match=words):
            refused.save_pretrained(tmp_path / "refused", self_contained=True)
    assert not (tmp_path / "refused").exists()


def test_folders_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder: .* not a saved model of this package"):
        complete_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="folder: .* not a saved model of this package"):
        collect_repository(tmp_path, "some/model")
    for text in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is not JSON"):
            complete_folder(tmp_path)
    SamEncoder(SamEncoderConfig.tiny()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="folder: .* holds no weights"):
        collect_repository(tmp_path, "some/model")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("pytorch_model.bin.index.json", True),
        ("model.fp16.safetensors", True),
        ("model.fp16-00001-of-00002.safetensors", True),
        ("model.safetensors.index.fp16.json", True),
        ("model_notes.bin", False),
        ("model-private.safetensors", False),
        ("models.index.json", False),
        ("modeling_deepencoder.py", False),
        ("config.json", False),
        ("encoding.png", False),
    ],
)
def test_is_weights(name: str, expected: bool) -> None:
    assert is_weights(name) is expected
