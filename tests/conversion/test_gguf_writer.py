"""Files for llama.cpp: its tensor names, shapes and types, and the metadata that it requires."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig
from deepencoder.conversion.gguf_writer import GGUF_TYPES, write_gguf

from ..conftest import randomize

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def model() -> Any:
    """A model of the published depth and epsilons, and of small widths that blocks of 32 numbers divide."""
    sam = SamEncoderConfig.tiny(num_hidden_layers=12, global_attn_indexes=(2, 5, 8, 11), image_size=1024)
    clip = ClipVisionEncoderConfig.tiny(image_size=1024, patch_size=64, hidden_size=32)
    return randomize(DeepEncoder(DeepEncoderConfig(sam_config=sam, clip_config=clip, projection_dim=48)))


def read(path: Path) -> Any:
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


def test_names_shapes_and_numbers(model: Any, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "mmproj.gguf")
    _, tensors = read(tmp_path / "mmproj.gguf")
    assert len(tensors) == len(model.state_dict())
    for there, here in {
        "v.sam.pos_embd.weight": "sam_encoder.embeddings.position_embedding",
        "v.sam.blk.11.attn.qkv.weight": "sam_encoder.layers.11.attn.qkv.weight",
        "v.sam.blk.0.attn.pos_h.weight": "sam_encoder.layers.0.attn.rel_pos_h",
        "v.sam.neck.2.weight": "sam_encoder.neck.conv2.weight",
        "v.sam.net_3.weight": "sam_encoder.compressor.convs.1.weight",
        "v.class_embd": "clip_encoder.embeddings.class_embedding",
        "v.blk.1.ffn_up.weight": "clip_encoder.layers.1.mlp.fc1.weight",
        "mm.model.fc.bias": "projector.layers.0.bias",
        "v.image_newline": "image_newline",
    }.items():
        assert np.array_equal(tensors[there].data, model.state_dict()[here].numpy()), there
    assert list(tensors["v.view_seperator"].shape) == [48, 1]  # GGUF writes the fastest axis first.


def test_metadata(model: Any, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "mmproj.gguf", max_tiles=32)
    fields = read(tmp_path / "mmproj.gguf")[0].fields
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.projector_type": "deepseekocr",
        "clip.has_vision_encoder": True,
        "clip.vision.sam.block_count": 12,
        "clip.vision.sam.head_count": model.config.sam_config.num_attention_heads,
        "clip.vision.window_size": model.config.sam_config.window_size,
        "clip.vision.preproc_max_tiles": 32,
        "clip.vision.projection_dim": 48,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
    }
    assert {name: fields[name].contents() for name in expected} == expected


@pytest.mark.parametrize("gguf_type", GGUF_TYPES)
def test_types(model: Any, tmp_path: Path, gguf_type: str) -> None:
    """Matrices have the type that was asked for; what llama.cpp adds or convolves with stays in float32."""
    write_gguf(model, tmp_path / "mmproj.gguf", gguf_type)
    types = {name: tensor.tensor_type.name for name, tensor in read(tmp_path / "mmproj.gguf")[1].items()}
    matrices = {"v.sam.blk.0.mlp.lin1.weight", "v.blk.0.attn_qkv.weight", "mm.model.fc.weight"}
    assert {types[name] for name in matrices} == {gguf_type.upper()}
    kept = {name for name, kind in types.items() if kind == "F32"}
    assert {"v.sam.patch_embd.weight", "v.position_embd.weight", "v.sam.neck.0.weight", "v.view_seperator"} <= kept
    assert all(name in kept for name in types if name.endswith("bias"))


def test_what_llama_cpp_would_compute_differently_is_refused(tmp_path: Path, tiny_model: Any, model: Any) -> None:
    path = tmp_path / "mmproj.gguf"
    with pytest.raises(ValueError, match="model has image_size 256, but llama.cpp computes with 1024"):
        write_gguf(tiny_model, path)
    with pytest.raises(ValueError, match="gguf_type must be one of 'f32'.*got 'q4'"):
        write_gguf(model, path, "q4")
    assert not list(tmp_path.iterdir())
