"""Configurations: presets, validation, JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from deepencoder import ClipVisionEncoderConfig, DeepEncoderConfig, SamEncoderConfig

NAN, INFINITY = float("nan"), float("inf")
ALL = [SamEncoderConfig, ClipVisionEncoderConfig, DeepEncoderConfig]


@pytest.mark.parametrize("config_class", ALL)
@pytest.mark.parametrize("preset", ["__call__", "tiny"])
def test_json_round_trip(config_class: Any, preset: str, tmp_path: Path) -> None:
    config = config_class() if preset == "__call__" else config_class.tiny()
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is config_class
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert config_class(**json.loads(config.to_json_string())).to_json_string() == config.to_json_string()


@pytest.mark.parametrize(
    ("config_class", "values", "words"),
    [
        (SamEncoderConfig, {"patch_size": 15}, ["patch_size=15", "image_size=1024"]),
        (SamEncoderConfig, {"num_attention_heads": 7}, ["num_attention_heads=7", "hidden_size=768"]),
        (SamEncoderConfig, {"global_attn_indexes": (2, 12)}, ["global_attn_indexes", "12", "num_hidden_layers=12"]),
        (SamEncoderConfig, {"global_attn_indexes": (-1,)}, ["global_attn_indexes", "-1"]),
        (SamEncoderConfig, {"image_size": 0}, ["image_size", "0"]),
        (SamEncoderConfig, {"hidden_size": -768}, ["hidden_size", "-768"]),
        (SamEncoderConfig, {"hidden_size": "abc"}, ["SamEncoderConfig", "hidden_size", "abc"]),
        (DeepEncoderConfig, {"projection_dim": None}, ["projection_dim", "None"]),
        (SamEncoderConfig, {"window_size": 0}, ["window_size", "0"]),
        (SamEncoderConfig, {"downsample_channels": (512, 0)}, ["downsample_channels", "0"]),
        (SamEncoderConfig, {"hidden_act": "nonsense"}, ["hidden_act", "nonsense"]),
        (SamEncoderConfig, {"attention_dropout": 1.5}, ["attention_dropout", "1.5"]),
        (ClipVisionEncoderConfig, {"patch_size": 15}, ["patch_size=15", "image_size=224"]),
        (ClipVisionEncoderConfig, {"num_attention_heads": 5}, ["num_attention_heads=5", "hidden_size=1024"]),
        (ClipVisionEncoderConfig, {"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        (ClipVisionEncoderConfig, {"post_norm": "some"}, ["post_norm", "'some'", "'pooled'"]),
        (ClipVisionEncoderConfig, {"projection_dim": 0}, ["projection_dim", "0"]),
        (DeepEncoderConfig, {"projector_type": "conv"}, ["projector_type", "'conv'", "'mlp_gelu'"]),
        (DeepEncoderConfig, {"projector_depth": 0}, ["projector_depth", "0"]),
        (DeepEncoderConfig, {"projection_dim": -1}, ["projection_dim", "-1"]),
        (DeepEncoderConfig, {"sam_config": {"downsample_channels": (512, 896)}}, ["hidden_size", "896", "1024"]),
        (DeepEncoderConfig, {"clip_config": {"hidden_size": 512}}, ["hidden_size", "512", "1024"]),
        (DeepEncoderConfig, {"sam_config": {"patch_size": 15}}, ["patch_size=15", "image_size=1024"]),
        (DeepEncoderConfig, {"sam_config": ClipVisionEncoderConfig()}, ["sam_config", "deepencoder_clip_vision"]),
        (DeepEncoderConfig, {"projector_type": "identity", "projection_dim": 7}, ["projection_dim", "7", "2048"]),
        (SamEncoderConfig, {"hidden_size": 10**30}, ["hidden_size", "131072", "10000"]),
        (SamEncoderConfig, {"image_size": 2**40}, ["image_size", "65536", "1099511627776"]),
        (SamEncoderConfig, {"image_size": 2**16, "patch_size": 1}, ["image_size=65536", "patch_size=1", "parameters"]),
        (SamEncoderConfig, {"num_hidden_layers": 10**9}, ["num_hidden_layers", "1024", "1000000000"]),
        (SamEncoderConfig, {"window_size": 10**4}, ["window_size", "256", "10000"]),
        (SamEncoderConfig, {"downsample_channels": [1] * 99}, ["downsample_channels", "8 entries", "99"]),
        (SamEncoderConfig, {"downsample_channels": [2**63]}, ["downsample_channels", "131072"]),
        (SamEncoderConfig, {"layer_norm_eps": INFINITY}, ["layer_norm_eps", "inf"]),
        (SamEncoderConfig, {"layer_norm_eps": 10**400}, ["layer_norm_eps", "10000"]),
        (SamEncoderConfig, {"layer_norm_eps": 1e-300}, ["layer_norm_eps", "1e-300"]),
        (SamEncoderConfig, {"initializer_range": NAN}, ["initializer_range", "nan"]),
        (SamEncoderConfig, {"initializer_range": 0}, ["initializer_range", "0"]),
        (ClipVisionEncoderConfig, {"initializer_range": -0.02}, ["initializer_range", "-0.02"]),
        (ClipVisionEncoderConfig, {"initializer_range": INFINITY}, ["initializer_range", "inf"]),
        (ClipVisionEncoderConfig, {"attention_dropout": NAN}, ["attention_dropout", "nan"]),
        (ClipVisionEncoderConfig, {"layer_norm_eps": NAN}, ["layer_norm_eps", "nan"]),
        (ClipVisionEncoderConfig, {"layer_norm_eps": -1e-5}, ["layer_norm_eps", "-1e-05"]),
        (ClipVisionEncoderConfig, {"projection_dim": 10**12}, ["projection_dim", "131072"]),
        (
            ClipVisionEncoderConfig,
            {"hidden_size": 2**16, "num_hidden_layers": 1000},
            ["hidden_size=65536", "num_hidden_layers=1000", "parameters"],
        ),
        (ClipVisionEncoderConfig, {"num_labels": 10**12}, ["num_labels", "65536", "1000000000000"]),
        (ClipVisionEncoderConfig, {"dtype": "nn"}, ["dtype", "'nn'"]),
        (ClipVisionEncoderConfig, {"torch_dtype": "nonsense"}, ["torch_dtype", "'nonsense'"]),
        (ClipVisionEncoderConfig, {"attn_implementation": 5}, ["attn_implementation", "5"]),
        (SamEncoderConfig, {"mlp_dim": None}, ["intermediate_size", "None"]),
        (SamEncoderConfig, {"mlp_dim": True}, ["intermediate_size", "True"]),
        (SamEncoderConfig, {"id2label": True}, ["SamEncoderConfig", "bool"]),
        (ClipVisionEncoderConfig, {"id2label": {"a": 1}}, ["ClipVisionEncoderConfig", "int()", "'a'"]),
        (ClipVisionEncoderConfig, {"per_layer_config": [1]}, ["ClipVisionEncoderConfig"]),
        (ClipVisionEncoderConfig, {"hidden_act": "x" * 10**6}, ["hidden_act", "xxx"]),
        (DeepEncoderConfig, {"projector_depth": 10**6}, ["projector_depth", "1024", "1000000"]),
        (DeepEncoderConfig, {"projection_dim": 2**17, "projector_depth": 99}, ["projection_dim=131072", "parameters"]),
        (DeepEncoderConfig, {"initializer_range": NAN}, ["initializer_range", "nan"]),
        (DeepEncoderConfig, {"sam_config": {"hidden_size": 10**12}}, ["SamEncoderConfig.hidden_size", "131072"]),
        (DeepEncoderConfig, {"sam_config": 5}, ["sam_config", "int"]),
    ],
)
def test_bad_values_name_field_and_numbers(config_class: Any, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        config_class(**values)
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message and len(message) < 400, message


def test_published_sizes() -> None:
    config = DeepEncoderConfig()
    assert config.hidden_size == 2048
    assert config.sam_config.downsample_channels == (512, 1024)
    assert (config.sam_config.grid_size, config.clip_config.grid_size, config.sam_config.total_stride) == (64, 16, 64)
    assert config.clip_config.hidden_act == "quick_gelu"


def test_clip_presets() -> None:
    for config, sizes in (
        (ClipVisionEncoderConfig.base_patch32(), (768, 12, 7, 512)),
        (ClipVisionEncoderConfig.base_patch16(), (768, 12, 14, 512)),
        (ClipVisionEncoderConfig.large_patch14(), (1024, 24, 16, 768)),
    ):
        assert (config.hidden_size, config.num_hidden_layers, config.grid_size, config.projection_dim) == sizes
        assert config.post_norm == "pooled"
    assert ClipVisionEncoderConfig.base_patch16(projection_dim=None).projection_dim is None


def test_a_deepencoder_takes_parts_as_objects_or_dicts_and_keeps_the_callers_object() -> None:
    clip_config = ClipVisionEncoderConfig(hidden_act="gelu")
    config = DeepEncoderConfig(sam_config={"window_size": 7}, clip_config=clip_config)
    assert config.sam_config.window_size == 7
    assert config.clip_config.hidden_act == "gelu"
    assert clip_config.use_patch_embedding and not config.clip_config.use_patch_embedding


def test_identity_projector_keeps_the_fused_width() -> None:
    assert DeepEncoderConfig(projector_type="identity").projection_dim == 2048


def test_mlp_dim_is_another_name_of_intermediate_size() -> None:
    assert SamEncoderConfig(mlp_dim=100).intermediate_size == 100


@pytest.mark.parametrize("image_size", [64, 128, 192, 1024])
def test_tiny_takes_any_multiple_of_64(image_size: int) -> None:
    config = DeepEncoderConfig.tiny(image_size=image_size)
    assert config.sam_config.image_size == image_size
    assert config.clip_config.grid_size == image_size // 64
