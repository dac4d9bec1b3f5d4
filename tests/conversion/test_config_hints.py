"""Fields of the configuration, from the files beside a checkpoint."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save_file

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig
from deepencoder.conversion.config_hints import TowerPart, read_language_model_hints
from deepencoder.conversion.converter import convert_checkpoint

from ..conftest import randomize
from .samples import VALUES, build, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


HINTS: dict[str, dict[str, Any]] = {
    "transformers": {"vision_config": {"hidden_size": 48, "num_attention_heads": 4, "hidden_act": "gelu"}},
    "DeepSeek-OCR": {
        "hidden_size": 48,
        "num_attention_heads": 8,
        "vision_config": {"width": {"clip": {"width": 48, "heads": 4}}},
    },
    "open_clip": {"model_cfg": {"quick_gelu": False, "vision_cfg": {"width": 48, "head_width": 12}}},
}


@pytest.mark.parametrize("source", HINTS)
def test_heads_come_from_the_config_or_the_caller(tmp_path: Path, source: str) -> None:
    layout = layout_of("clip")
    sizes = VALUES["clip"] | {"hidden_size": 48, "num_attention_heads": 4}
    model = randomize(ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**sizes)))
    save_file(state_dict_there(model, layout), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="num_attention_heads.*48"):
        convert_checkpoint(tmp_path)
    assert convert_checkpoint(tmp_path, num_attention_heads=6).model.config.num_attention_heads == 6
    name = "open_clip_config.json" if source == "open_clip" else "config.json"
    (tmp_path / name).write_text(json.dumps(HINTS[source]))
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.config.num_attention_heads == 4
    told = source != "DeepSeek-OCR"
    assert conversion.model.config.hidden_act == ("gelu" if told else "quick_gelu")
    assert list(conversion.report.assumed) == ([] if told else ["hidden_act"])
    assert convert_checkpoint(tmp_path, hidden_act="gelu").report.assumed == {}


def test_a_deeply_nested_config() -> None:
    config: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 4}
    for _ in range(5000):  # Some Pythons parse JSON that is nested more deeply than their calls may be.
        config = {"a": config}
    checkpoint: Any = SimpleNamespace(config={"vision_config": config})
    assert read_language_model_hints(checkpoint, 48, TowerPart.CLIP) == {"num_attention_heads": 4}


def test_a_language_models_fields_are_not_the_towers(tmp_path: Path) -> None:
    save_file(state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR), tmp_path / "model.safetensors")
    fields = {"model_type": "x", "hidden_size": 192, "num_attention_heads": 6, "hidden_act": "silu"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = convert_checkpoint(tmp_path).model.config.clip_config
    assert (config.hidden_act, config.num_attention_heads) == ("quick_gelu", 3)


def test_open_clip_towers_that_are_built_otherwise(tmp_path: Path) -> None:
    save_file(state_dict_there(build(layout_of("clip")), layout_of("clip")), tmp_path / "model.safetensors")
    tower = {"width": 192, "norm_kwargs": {"eps": 1e-3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": tower}}))
    config = convert_checkpoint(tmp_path).model.config
    assert (config.layer_norm_eps, config.hidden_act) == (1e-3, "gelu")
    for change in ({"pool_type": "avg"}, {"head_width": 0}, {"head_width": {}}, {"timm_model_name": "vit"}):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": tower | change}}))
        with pytest.raises(ValueError, match=next(iter(change))):
            convert_checkpoint(tmp_path)
