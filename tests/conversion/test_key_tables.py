"""Key tables: every name of both sides, each matched exactly once, and back again."""

from typing import Any

import pytest
import torch

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig
from deepencoder.conversion.key_mapping import convert_state_dict, map_keys
from deepencoder.conversion.key_tables import (
    CLIP_TRANSFORMERS,
    DEEPENCODER_DEEPSEEK_OCR,
    DEEPENCODER_UNLIMITED_OCR,
    VIT_TRANSFORMERS,
)


def reversed_keys(names: Any, table: Any) -> dict[str, tuple[str, ...]]:
    """Names there for names here, through the table read the other way."""
    one_way = tuple((row[index], row[0]) for row in table for index in range(1, len(row)))
    found: dict[str, tuple[str, ...]] = {}
    for row in one_way:
        mapped, _ = map_keys(names, (row,))
        for there, (here,) in mapped.items():
            found[here] = (*found.get(here, ()), there)
    return found


@pytest.mark.parametrize(
    ("table", "outside"),
    [
        (DEEPENCODER_DEEPSEEK_OCR, set()),
        (
            DEEPENCODER_UNLIMITED_OCR,
            {"projector.layers.0.weight", "projector.layers.0.bias", "image_newline", "view_separator"},
        ),
    ],
)
def test_deepencoder_tables_are_exhaustive_in_both_directions(table: Any, outside: set[str]) -> None:
    names = set(DeepEncoder(DeepEncoderConfig.tiny()).state_dict())
    backward = reversed_keys(names, table)
    assert set(backward) == names - outside
    there = [key for keys in backward.values() for key in keys]
    assert len(there) == len(set(there))
    forward, unknown = map_keys(there, table)
    assert unknown == [] and forward == backward


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (CLIP_TRANSFORMERS, {"post_norm": "pooled", "projection_dim": 8}),
        (VIT_TRANSFORMERS, {"post_norm": "all", "use_patch_bias": True, "use_pre_norm": False}),
    ],
)
def test_tower_tables_are_exhaustive_in_both_directions(table: Any, values: dict[str, Any]) -> None:
    names = set(ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**values)).state_dict())
    backward = reversed_keys(names, table)
    assert set(backward) == names
    forward, unknown = map_keys([key for keys in backward.values() for key in keys], table)
    assert unknown == [] and forward == backward


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("model.sam_model.patch_embed.proj.weight", "sam_encoder.embeddings.patch_embedding.weight"),
        ("model.sam_model.pos_embed", "sam_encoder.embeddings.position_embedding"),
        ("model.sam_model.blocks.11.attn.rel_pos_h", "sam_encoder.layers.11.attn.rel_pos_h"),
        ("model.sam_model.blocks.0.norm1.bias", "sam_encoder.layers.0.layer_norm1.bias"),
        ("model.sam_model.neck.3.weight", "sam_encoder.neck.layer_norm2.weight"),
        ("model.sam_model.net_3.weight", "sam_encoder.compressor.convs.1.weight"),
        ("model.vision_model.embeddings.position_embedding.weight", "clip_encoder.embeddings.position_embedding"),
        ("model.vision_model.pre_layrnorm.weight", "clip_encoder.pre_layernorm.weight"),
        (
            "model.vision_model.transformer.layers.23.self_attn.qkv_proj.bias",
            "clip_encoder.layers.23.self_attn.qkv_proj.bias",
        ),
        ("model.projector.layers.weight", "projector.layers.0.weight"),
        ("model.view_seperator", "view_separator"),
    ],
)
def test_names_of_deepseek_ocr(there: str, here: str) -> None:
    assert map_keys([there], DEEPENCODER_DEEPSEEK_OCR) == ({here: (there,)}, [])


def test_unknown_and_partial_keys() -> None:
    assert map_keys(["lm_head.weight"], DEEPENCODER_DEEPSEEK_OCR) == ({}, ["lm_head.weight"])
    with pytest.raises(ValueError, match="k_proj.weight"):
        map_keys(
            ["encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.0.self_attn.v_proj.weight"], CLIP_TRANSFORMERS
        )
    with pytest.raises(ValueError, match="2 rows"):
        map_keys(["a.b"], (("x.*", "a.*"), ("y.*", "a.*")))


def test_tensors_are_joined_and_reshaped() -> None:
    parts = [torch.randn(2, 3) for _ in range(3)]
    table = (("qkv", "q", "k", "v"), ("position", "positions"))
    target = {"qkv": torch.empty(6, 3), "position": torch.empty(5, 4)}
    source = {"q": parts[0], "k": parts[1], "v": parts[2], "positions": torch.randn(1, 5, 4), "rest": torch.empty(1)}
    converted, unused = convert_state_dict(source, table, target)
    assert torch.equal(converted["qkv"], torch.cat(parts)) and converted["position"].shape == (5, 4)
    assert unused == ["rest"]
    with pytest.raises(ValueError, match=r"positions.*\(1, 4, 5\).*\(5, 4\)"):
        convert_state_dict({"positions": torch.empty(1, 4, 5)}, table, target)
