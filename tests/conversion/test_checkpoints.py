"""Checkpoints of other code: small seeded ones of every layout, files of every kind, and damaged ones."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.conversion.checkpoints import convert_checkpoint, open_checkpoint, save_converted
from deepencoder.conversion.keys import prefixed, revert_state_dict
from deepencoder.conversion.layouts import LAYOUTS, Layout, recognize

from ..conftest import randomize

TOWER = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 64}
VALUES = {
    "CLIP by OpenAI or open_clip": TOWER | {"post_norm": "pooled", "projection_dim": 24},
    "CLIP in transformers": TOWER | {"post_norm": "pooled", "projection_dim": 24},
    "CLIP's vision model in transformers": TOWER | {"post_norm": "pooled"},
    "ViT in timm": TOWER
    | {
        "post_norm": "all",
        "use_pre_norm": False,
        "use_patch_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    },
    "ViT in transformers": TOWER
    | {
        "post_norm": "all",
        "use_pre_norm": False,
        "use_patch_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    },
}
OTHER_TENSORS = {"model.layers.0.mlp.gate_proj.weight": torch.zeros(2, 2), "lm_head.weight": torch.zeros(2)}


def build(layout: Layout) -> Any:
    """One of our models, of the kind and with the parts that a checkpoint of this layout holds."""
    if layout.model_type == "deepencoder_clip_vision":
        model: Any = ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**VALUES[layout.name]))
    elif layout.model_type == "deepencoder_sam":
        channels = () if layout.name.startswith("SAM") else (24, 32)
        model = SamEncoder(SamEncoderConfig.tiny(image_size=128, downsample_channels=channels, num_hidden_layers=3))
    else:
        sam_config = SamEncoderConfig.tiny(image_size=128, downsample_channels=(24, 192))
        clip_config = ClipVisionEncoderConfig.tiny(**TOWER, image_size=28, patch_size=14)
        model = DeepEncoder(DeepEncoderConfig(sam_config=sam_config, clip_config=clip_config, projection_dim=40))
    return randomize(model)


def state_dict_there(model: Any, layout: Layout, prefix: str = "") -> dict[str, torch.Tensor]:
    return revert_state_dict(model.state_dict(), prefixed(layout.table, there=prefix))


def inputs_of(model: Any) -> torch.Tensor:
    return torch.randn(1, 3, 128, 128) if not isinstance(model, ClipVisionEncoder) else torch.randn(1, 3, 64, 64)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("prefix", ["", "model."])
@torch.no_grad()
def test_every_layout_comes_back_bit_for_bit(layout: Layout, prefix: str, tmp_path: Path) -> None:
    model = build(layout)
    tensors = state_dict_there(model, layout, prefix)
    if layout.claims != ("",):
        tensors |= OTHER_TENSORS
    assert recognize(tensors) == (layout, prefix)
    save_file(tensors, tmp_path / "model.safetensors")
    converted, report = convert_checkpoint(tmp_path)
    assert type(converted) is type(model) and report.layout == layout.name
    assert report.left_behind == {} and report.not_finite == []
    without_compressor = layout.name.startswith("SAM")
    assert bool(report.initialized) == without_compressor
    assert all(name.startswith("compressor.") for name in report.initialized)
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    if not without_compressor:
        pixels = inputs_of(model)
        ours, theirs = converted.eval()(pixels), model(pixels)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)


@torch.no_grad()
def test_a_checkpoint_saved_by_transformers_itself(tmp_path: Path) -> None:
    module = pytest.importorskip("transformers.models.unlimited_ocr.modeling_unlimited_ocr")
    text = {"hidden_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {
        "intermediate_size": 32,
        "vocab_size": 64,
        "pad_token_id": 0,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
    }
    sam = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "output_channels": 32,
        "image_size": 256,
    }
    sam |= {"downsample_channels": (40, 192), "mlp_dim": 128, "global_attn_indexes": (1,)}
    clip = TOWER | {"image_size": 56}
    vision = module.UnlimitedOcrVisionConfig(sam_config=sam, encoder_config=clip)
    config = module.UnlimitedOcrConfig(vision_config=vision, text_config=text, image_token_id=5)
    peer = randomize(module.UnlimitedOcrForConditionalGeneration(config))
    peer.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, report = convert_checkpoint(tmp_path)
    assert isinstance(model, DeepEncoder) and report.layout == "DeepSeek-OCR" and report.initialized == []
    pixels, tiles, grids = torch.randn(1, 3, 256, 256), torch.randn(2, 3, 128, 128), [[2, 1]]
    theirs = peer.get_image_features(pixels, tiles, [2], grids).pooler_output[0]
    ours = model.get_image_features(pixels, tiles, patches_grid=grids).pooler_output[0]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_parts_that_are_missing_are_reported(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    tensors = state_dict_there(build(layout), layout)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ("image_newline", "view_seperator")}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "encoder.pth")
    model, report = convert_checkpoint(tmp_path / "encoder.pth")
    assert report.initialized == ["image_newline", "view_separator"]
    assert model.config.projection_dim == 40


def test_what_stays_behind_is_reported(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    tensors = state_dict_there(build(layout), layout, "model.")
    patches = "model.vision_model.embeddings.patch_embedding.weight"
    save_file(tensors | {patches: torch.zeros(192, 3, 14, 14)}, tmp_path / "model.safetensors")
    _, report = convert_checkpoint(tmp_path)
    assert list(report.left_behind) == [patches] and report.initialized == []


def test_the_dtype_is_kept_and_nans_are_reported(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    tensors = {name: tensor.bfloat16() for name, tensor in state_dict_there(build(layout), layout).items()}
    tensors["sam_model.neck.0.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    model, report = convert_checkpoint(tmp_path)
    assert model.dtype == torch.bfloat16 and report.dtype == "bfloat16"
    assert report.not_finite == ["sam_encoder.neck.conv1.weight"]


def test_only_the_tensors_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS[0]
    save_file(state_dict_there(build(layout), layout, "model.") | OTHER_TENSORS, tmp_path / "model.safetensors")
    read: list[str] = []
    original = type(open_checkpoint(tmp_path)).__getitem__
    monkeypatch.setattr(
        "deepencoder.conversion.checkpoints.Checkpoint.__getitem__",
        lambda self, name: (read.append(name), original(self, name))[1],
    )
    convert_checkpoint(tmp_path)
    assert read and not set(read) & set(OTHER_TENSORS)
    assert len(read) == len(set(read))


def test_strict_about_the_encoders_own_parts(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    tensors = state_dict_there(build(layout), layout)
    save_file(tensors | {"sam_model.blocks.0.norm3.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm3.*nearest.*sam_model\.blocks\.0\.norm"):
        convert_checkpoint(tmp_path)


def test_heads_come_from_the_config_or_the_caller(tmp_path: Path) -> None:
    layout = next(layout for layout in LAYOUTS if layout.name == "CLIP in transformers")
    sizes = VALUES[layout.name] | {"hidden_size": 48, "num_attention_heads": 4}
    model = randomize(ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**sizes)))
    save_file(state_dict_there(model, layout), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="num_attention_heads.*48"):
        convert_checkpoint(tmp_path)
    assert convert_checkpoint(tmp_path, num_attention_heads=6)[0].config.num_attention_heads == 6
    hints = {"vision_config": {"hidden_size": 48, "num_attention_heads": 4, "hidden_act": "gelu"}}
    (tmp_path / "config.json").write_text(json.dumps(hints))
    config = convert_checkpoint(tmp_path)[0].config
    assert (config.num_attention_heads, config.hidden_act) == (4, "gelu")


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def test_bad_sources(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    whole = tmp_path / "whole.safetensors"
    save_file(state_dict_there(build(layout), layout), whole)

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    def index(name: str, shard: str) -> Path:
        path = folder(name)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        return path

    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(whole.read_bytes()[:-10])
    short = tmp_path / "short.safetensors"
    short.write_bytes((10**9).to_bytes(8, "little") + b"{}")
    harmful = tmp_path / "harmful.pth"
    harmful.write_bytes(pickle.dumps({"weight": Harmful()}))
    empty = tmp_path / "empty.pth"
    torch.save({"epoch": 1}, empty)
    unknown = tmp_path / "unknown.safetensors"
    save_file({"something.weight": torch.zeros(1)}, unknown)
    misshapen = tmp_path / "misshapen.safetensors"
    tensors = state_dict_there(build(layout), layout)
    save_file(tensors | {"vision_model.pre_layrnorm.weight": torch.zeros(7)}, misshapen)
    twice = folder("twice")
    for name in ("one", "two"):
        save_file({"same": torch.zeros(1)}, twice / f"{name}.safetensors")
    for source, words in (
        (truncated, "truncated.safetensors"),
        (short, "short.safetensors"),
        (harmful, "without running its code"),
        (empty, "no dict of tensors"),
        (unknown, "something.weight"),
        (misshapen, r"\(7,\).*\(192,\)"),
        (twice, "another shard"),
        (index("outside", "../whole.safetensors"), "outside of its folder"),
        (index("missing", "gone.safetensors"), "gone.safetensors"),
        (folder("nothing"), "neither safetensors"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            convert_checkpoint(source)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="gone"):
        convert_checkpoint(tmp_path / "gone")


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DeepEncoder(DeepEncoderConfig.tiny())
    save_converted(model, tmp_path / "new" / "target")
    assert (tmp_path / "new" / "target" / "model.safetensors").is_file()
    assert (tmp_path / "new" / "target" / "preprocessor_config.json").is_file()
    with pytest.raises(FileExistsError, match="target"):
        save_converted(model, tmp_path / "new" / "target")

    def fail(folder: Path) -> None:
        (Path(folder) / "config.json").write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(OSError, match="full"):
        save_converted(model, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
