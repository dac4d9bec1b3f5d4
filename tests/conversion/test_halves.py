"""DeepEncoders from a SAM and a CLIP that were trained apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig, DeepEncoder, SamEncoder, SamEncoderConfig

from ..conftest import randomize
from .samples import build, layout_of, state_dict_there


def write(slug: str, path: Path) -> Any:
    """Write a checkpoint of a layout, and return its model."""
    model = build(layout_of(slug))
    save_file(state_dict_there(model, layout_of(slug)), path)
    return model


def test_halves_of_other_code_become_one_model(tmp_path: Path) -> None:
    """Meta's SAM, which has no compressor, and OpenAI's CLIP, which has a norm and a projection behind it."""
    sam, clip = write("sam", tmp_path / "sam.safetensors"), write("clip", tmp_path / "clip.safetensors")
    model = DeepEncoder.from_halves(tmp_path / "sam.safetensors", tmp_path / "clip.safetensors", projection_dim=24)
    own, report = model.state_dict(), model.halves_report
    for prefix, half, names in (("sam_encoder.", sam, report["sam"]), ("clip_encoder.", clip, report["clip"])):
        assert len(names) > 20
        for name in names:
            assert torch.equal(own[name], half.state_dict()[name.removeprefix(prefix)]), name
    assert set(report["initialized"]) == {
        "image_newline",
        "projector.layers.0.bias",
        "projector.layers.0.weight",
        "sam_encoder.compressor.convs.0.weight",
        "sam_encoder.compressor.convs.1.weight",
        "view_separator",
    }
    assert {"clip_encoder.post_layernorm.weight", "clip_encoder.visual_projection.weight"} <= set(
        report["left_behind"]
    )
    output = model(torch.randn(1, 3, 128, 128))
    assert output.vision_tokens[0].shape == (7, 24)
    output.vision_tokens[0].sum().backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "compressor" in name)


def test_a_compressor_of_the_right_width_is_kept() -> None:
    sam = randomize(SamEncoder(SamEncoderConfig.tiny(downsample_channels=(24, 32))))
    clip = randomize(ClipVisionEncoder(ClipVisionEncoderConfig.tiny(hidden_size=32)))
    model = DeepEncoder.from_halves(sam, clip)
    assert torch.equal(model.sam_encoder.compressor.convs[1].weight, sam.compressor.convs[1].weight)
    assert clip.config.use_patch_embedding and sam.config.downsample_channels == (24, 32)
    wide = DeepEncoder.from_halves(sam, ClipVisionEncoder(ClipVisionEncoderConfig.tiny(hidden_size=48)))
    assert wide.config.sam_config.downsample_channels == (24, 48)
    assert any("compressor" in name for name in wide.halves_report["initialized"])


def test_what_is_no_half_is_refused(tmp_path: Path) -> None:
    write("clip", tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="sam: .*'deepencoder_clip_vision'"):
        DeepEncoder.from_halves(tmp_path / "clip.safetensors", tmp_path / "clip.safetensors")
    with pytest.raises(TypeError, match="clip must be a ClipVisionEncoder or the name"):
        DeepEncoder.from_halves(SamEncoder(SamEncoderConfig.tiny()), 7)


def test_parts_in_three_files_are_one_checkpoint(tmp_path: Path) -> None:
    layout = layout_of("deepseek-ocr-parts")
    model = build(layout)
    tensors = state_dict_there(model, layout)
    files = {
        "sam_encoder.pth": ("pos_embed", "patch_embed.", "blocks.", "neck.", "net_"),
        "clip_encoder.pth": ("embeddings.", "pre_layrnorm.", "transformer."),
        "projector.pth": ("layers.", "image_newline", "view_seperator"),
    }
    for file, prefixes in files.items():
        torch.save({name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}, tmp_path / file)
    loaded = DeepEncoder.from_original(tmp_path, num_attention_heads=3)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
