"""Models that torchao quantised: saved, loaded again, and refused where they cannot be saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, TorchAoConfig

from deepencoder import DeepEncoder, DeepEncoderConfig

quantization = pytest.importorskip("torchao.quantization")

CONFIGS = ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")


def quantize(folder: Path, config: str) -> Any:
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(folder)
    settings = TorchAoConfig(getattr(quantization, config)())
    return AutoModel.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("max_shard_size", ["1GB", "50KB"])
@torch.no_grad()
def test_a_quantised_model_loads_again(config: str, max_shard_size: str, tmp_path: Path) -> None:
    model = quantize(tmp_path / "original", config)
    inputs = {"pixel_values": torch.randn(1, 3, 64, 64)}
    expected = model(**inputs)
    for generation in ("first", "second"):
        model.save_pretrained(tmp_path / generation, max_shard_size=max_shard_size)
        model, facts = AutoModel.from_pretrained(tmp_path / generation, output_loading_info=True)
        assert not any(facts.values()), facts
        assert type(model.clip_encoder.layers[0].mlp.fc1.weight).__module__.startswith("torchao")
        output = model(**inputs)
        assert torch.equal(output.vision_tokens[0], expected.vision_tokens[0])
    assert (len(list((tmp_path / "second").glob("*.safetensors"))) > 1) == (max_shard_size == "50KB")


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """transformers does not know that these are quantised, so it would write a configuration without weights."""
    part = quantize(tmp_path / "original", CONFIGS[0]).clip_encoder
    by_hand = DeepEncoder(DeepEncoderConfig.tiny())
    quantization.quantize_(by_hand, quantization.Int8WeightOnlyConfig())
    for model in (part, by_hand):
        with pytest.raises(ValueError, match="torchao.*cannot be saved.*quantization_config"):
            model.save_pretrained(tmp_path / "quantised")
        assert not (tmp_path / "quantised").exists()
