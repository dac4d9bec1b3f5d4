"""An original checkpoint on the Hub of the tests, and what was downloaded from there."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig

from ..conftest import randomize
from ..hub_server import Hub
from .samples import layout_of, state_dict_there

__all__ = ["REPO", "build_encoder", "publish_original", "sent_weights", "size_of"]

REPO = "some/deepseek-ocr"
CONFIG = {"model_type": "deepseek_vl_v2", "candidate_resolutions": [[640, 640]]}


def build_encoder() -> DeepEncoder:
    """Return an encoder of 6 MB with random weights."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 192, "intermediate_size": 512}
    sam_config = SamEncoderConfig.tiny(
        **sizes, image_size=128, downsample_channels=(24, 192), global_attn_indexes=(1,)
    )
    clip_config = ClipVisionEncoderConfig.tiny(**sizes, image_size=28, patch_size=14)
    model = randomize(
        DeepEncoder(DeepEncoderConfig(sam_config=sam_config, clip_config=clip_config, projection_dim=40))
    )
    assert isinstance(model, DeepEncoder)
    return model


def publish_original(hub: Hub, model: DeepEncoder, folder: Path) -> None:
    """Publish `REPO`: two shards with the encoder in DeepSeek-OCR's layout, and four times as many other bytes."""
    tensors = state_dict_there(model, layout_of("deepseek-ocr"), "model.")
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.weight", "model.zzz.weight"]
    tensors |= {name: torch.zeros(1_500_000) for name in names}
    folder.mkdir()
    weight_map = {}
    for number in (1, 2):
        shard = dict(sorted(tensors.items())[number - 1 :: 2])
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    hub.repos[REPO] = folder


def sent_weights(hub: Hub) -> int:
    """Return the number of bytes of safetensors files that the server has sent."""
    return sum(count for name, count in hub.sent.items() if name.endswith(".safetensors"))


def size_of(model: Any) -> int:
    """Return the number of bytes of a model's tensors."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())
