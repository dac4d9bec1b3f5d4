"""Key tables: every name of both sides matches exactly one row, in both directions."""

from typing import Any

import pytest

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig
from deepencoder.conversion.key_mapping import map_keys
from deepencoder.conversion.key_tables import (
    CLIP_TRANSFORMERS,
    DEEPENCODER_DEEPSEEK_OCR,
    DEEPENCODER_UNLIMITED_OCR,
    DEEPENCODER_UNLIMITED_OCR_VISION,
    VIT_TRANSFORMERS,
    KeyTable,
    row,
)


def reversed_keys(names: Any, table: KeyTable) -> dict[str, tuple[str, ...]]:
    """Return names of other code by our names, through the table read in the other direction."""
    found: dict[str, tuple[str, ...]] = {}
    for item in table:
        for name in item.there:
            mapped, _ = map_keys(names, (row(name, item.here),))
            for there, one in mapped.items():
                found[one.there[0]] = (*found.get(one.there[0], ()), there)
    return found


def names_there(rows: Any) -> dict[str, tuple[str, ...]]:
    return {name: item.there for name, item in rows.items()}


@pytest.mark.parametrize(
    ("table", "outside"),
    [
        (DEEPENCODER_DEEPSEEK_OCR, set()),
        (DEEPENCODER_UNLIMITED_OCR, set()),
        (
            DEEPENCODER_UNLIMITED_OCR_VISION,
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
    assert unknown == [] and names_there(forward) == backward


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
    assert unknown == [] and names_there(forward) == backward


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("sam_model.patch_embed.proj.weight", "sam_encoder.embeddings.patch_embedding.weight"),
        ("sam_model.pos_embed", "sam_encoder.embeddings.position_embedding"),
        ("sam_model.blocks.11.attn.rel_pos_h", "sam_encoder.layers.11.attn.rel_pos_h"),
        ("sam_model.blocks.0.norm1.bias", "sam_encoder.layers.0.layer_norm1.bias"),
        ("sam_model.neck.3.weight", "sam_encoder.neck.layer_norm2.weight"),
        ("sam_model.net_3.weight", "sam_encoder.compressor.convs.1.weight"),
        ("vision_model.embeddings.position_embedding.weight", "clip_encoder.embeddings.position_embedding"),
        ("vision_model.pre_layrnorm.weight", "clip_encoder.pre_layernorm.weight"),
        (
            "vision_model.transformer.layers.23.self_attn.qkv_proj.bias",
            "clip_encoder.layers.23.self_attn.qkv_proj.bias",
        ),
        ("projector.layers.weight", "projector.layers.0.weight"),
        ("view_seperator", "view_separator"),
    ],
)
def test_names_of_deepseek_ocr(there: str, here: str) -> None:
    assert map_keys([there], DEEPENCODER_DEEPSEEK_OCR) == ({here: row(here, there)}, [])
