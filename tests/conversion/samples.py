"""Small seeded checkpoints of every layout, and helpers to compare the models that they become."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderV2,
    DeepEncoderV2Config,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.conversion.key_mapping import revert_state_dict
from deepencoder.conversion.key_tables import prefixed
from deepencoder.conversion.layouts import LAYOUTS, Layout

from ..conftest import randomize

TOWER = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 64}
VIT = TOWER | {"post_norm": "all", "use_pre_norm": False, "use_patch_bias": True, "hidden_act": "gelu"}
VALUES = {
    "deepseek-ocr-clip": TOWER,
    "clip": TOWER | {"post_norm": "pooled", "projection_dim": 24},
    "clip-transformers": TOWER | {"post_norm": "pooled", "projection_dim": 24},
    "clip-vision-transformers": TOWER | {"post_norm": "pooled"},
    "vit-timm": VIT | {"layer_norm_eps": 1e-6},
    "vit-transformers": VIT | {"layer_norm_eps": 1e-12},
    "vit-transformers-memory": VIT | {"layer_norm_eps": 1e-12},
}
OTHER_TENSORS = {"model.layers.0.mlp.gate_proj.weight": torch.zeros(2, 2), "lm_head.weight": torch.zeros(2)}


def build(layout: Layout) -> Any:
    """Return one of our models with exactly the parts that a checkpoint of this layout has."""
    if layout.model_type == "deepencoder_clip_vision":
        model: Any = ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**VALUES[layout.slug]))
    elif layout.model_type == "deepencoder_sam":
        channels = () if layout.family.absent_parts else (24, 32)
        model = SamEncoder(SamEncoderConfig.tiny(image_size=128, downsample_channels=channels, num_hidden_layers=3))
    elif layout.model_type == "deepencoder_v2":
        # 896 is the one width whose number of heads is known without a file.
        model = DeepEncoderV2(
            DeepEncoderV2Config.tiny(
                image_size=128,
                sam_config=SamEncoderConfig.tiny(image_size=128, downsample_channels=(24, 896)).to_dict(),
                query_config={"num_hidden_layers": 2, "intermediate_size": 64},
                query_sizes=(768, 1024),
                projection_dim=40,
            )
        )
    else:
        sam_config = SamEncoderConfig.tiny(image_size=128, downsample_channels=(24, 192))
        clip_config = ClipVisionEncoderConfig.tiny(**TOWER, image_size=28, patch_size=14)
        model = DeepEncoder(DeepEncoderConfig(sam_config=sam_config, clip_config=clip_config, projection_dim=40))
    return randomize(model)


def state_dict_there(model: Any, layout: Layout, prefix: str = "") -> dict[str, torch.Tensor]:
    return revert_state_dict(model.state_dict(), prefixed(layout.table, there=prefix))


def inputs_of(model: Any) -> torch.Tensor:
    side = 64 if isinstance(model, ClipVisionEncoder) else 768 if isinstance(model, DeepEncoderV2) else 128
    return torch.randn(1, 3, side, side)


def layout_of(slug: str) -> Layout:
    return next(layout for layout in LAYOUTS if layout.slug == slug)


def assert_same(model: Any, expected: Any) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def write_checkpoint(folder: Path, slug: str, **files: dict[str, Any]) -> Any:
    """Write a checkpoint with JSON files beside it; return the model in it."""
    layout = layout_of(slug)
    model = build(layout)
    folder.mkdir(exist_ok=True)
    save_file(state_dict_there(model, layout), folder / "model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return model
