"""Files for llama.cpp: its tensor names, shapes and types, and the metadata that it requires."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig
from deepencoder.conversion.gguf_writer import GGUF_TYPES, write_gguf
from deepencoder.conversion.key_mapping import revert_state_dict
from deepencoder.conversion.key_tables import DEEPENCODER_LLAMA_CPP, DEEPENCODER_OLLAMA

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
    report = write_gguf(model, tmp_path / "mmproj.gguf")
    _, tensors = read(tmp_path / "mmproj.gguf")
    assert set(report.zeros) == set(tensors) - set(revert_state_dict(model.state_dict(), DEEPENCODER_LLAMA_CPP))
    assert not tensors["v.patch_embd.weight"].data.any() and set(report.types) == set(tensors)
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


@pytest.mark.parametrize(("gguf_type", "atol"), [("f32", 0.0), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2)])
def test_what_was_written_is_read(model: Any, tmp_path: Path, gguf_type: str, atol: float) -> None:
    path = tmp_path / "mmproj.gguf"
    write_gguf(model, path, gguf_type)
    loaded = DeepEncoder.from_original(path, num_attention_heads=model.config.clip_config.num_attention_heads)
    assert loaded.config.sam_config.global_attn_indexes == (2, 5, 8, 11)
    expected = model.state_dict()
    assert set(loaded.state_dict()) == set(expected)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor.float(), expected[name], atol=atol, rtol=atol, msg=name)


def test_ollama_files_are_read(model: Any, tmp_path: Path) -> None:
    """Their names, beside the tensors of a language model."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "deepseekocr")
    names = revert_state_dict(model.state_dict(), DEEPENCODER_OLLAMA)
    for there, here in {
        "s.blk.3.attn.rel_pos_h": "sam_encoder.layers.3.attn.rel_pos_h",
        "v.blk.1.self_attn.qkv_proj.bias": "clip_encoder.layers.1.self_attn.qkv_proj.bias",
        "mm.layers.weight": "projector.layers.0.weight",
    }.items():
        assert torch.equal(names[there], model.state_dict()[here])
    for name, tensor in (
        names | {"token_embd.weight": torch.zeros(4, 4), "blk.0.attn_q.weight": torch.ones(2, 2)}
    ).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    heads = model.config.clip_config.num_attention_heads
    loaded = DeepEncoder.from_original(tmp_path / "model.gguf", num_attention_heads=heads)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_command_line(cli: Any, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "encoder")
    path = tmp_path / "mmproj.gguf"
    code, out, err = cli("convert", "--to", "gguf", tmp_path / "encoder", path, "--outtype", "q8_0")
    assert code == 0 and "in q8_0" in out and "zeros: v.patch_embd.weight" in out, err
    heads = ("--num-attention-heads", str(model.config.clip_config.num_attention_heads))
    code, out, err = cli("convert", path, tmp_path / "again", *heads)
    assert code == 0 and "in llama.cpp -> DeepEncoder" in out and "left behind: v.patch_embd.weight" in out, err
    assert DeepEncoder.from_pretrained(tmp_path / "again").dtype == torch.float32
    for arguments, words in (
        (("--to", "gguf", tmp_path / "encoder", tmp_path / "file.bin"), "TARGET"),
        (("--to", "gguf", tmp_path / "encoder", path, tmp_path / "third"), "convert takes"),
        (("--to", "gguf", tmp_path / "encoder", path), "exists already"),
        ((path, tmp_path / "other", "--outtype", "f16"), "--outtype"),
    ):
        code, out, err = cli("convert", *arguments)
        assert code == 2 and out == "" and words in err and len(err.splitlines()) == 1, err
