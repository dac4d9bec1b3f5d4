"""Copies of an original that contain our encoder: no other byte changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.layouts import LAYOUTS, Layout
from deepencoder.conversion.readers.formats import open_file
from deepencoder.conversion.readers.hub import HubOptions
from deepencoder.conversion.restoration import restore_checkpoint

from ..conftest import randomize
from ..hub_server import Hub
from .samples import assert_same, build, layout_of, state_dict_there, write_checkpoint

DEEPSEEK_OCR = layout_of("deepseek-ocr")
OTHERS = {"lm_head.weight": torch.randn(50, 3), "model.a.weight": torch.randn(7).half(), "model.zz": torch.arange(9)}


def write_original(folder: Path, layout: Layout, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Write a sharded checkpoint with further tensors and files; return its encoder."""
    model = build(layout)
    tensors = {name: tensor.to(dtype) for name, tensor in state_dict_there(model, layout, "model.").items()}
    tensors = dict(sorted((tensors | OTHERS).items()))
    folder.mkdir()
    weight_map = {}
    for number in (0, 1):
        shard = dict(list(tensors.items())[number::2])
        save_file(shard, folder / f"part-{number}.safetensors", {"format": "pt", "note": str(number)})
        weight_map |= dict.fromkeys(shard, f"part-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "deepseek_vl_v2"}')
    (folder / "assets").mkdir()
    (folder / "assets" / "figure.bin").write_bytes(bytes(range(256)))
    return model


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_bytes(path: Path, encoder: set[str]) -> bytes:
    """Return the bytes of a safetensors file, with zeros for the encoder's tensors."""
    content = bytearray(path.read_bytes())
    for name, tensor in open_file(path).items():
        if name in encoder:
            content[tensor.start : tensor.end] = bytes(tensor.end - tensor.start)
    return bytes(content)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.slug)
def test_there_and_back_is_bit_exact(layout: Layout, tmp_path: Path) -> None:
    original = tmp_path / "original"
    if layout.claims == ("",):
        write_checkpoint(original, layout.slug)
    else:
        write_original(original, layout)
    convert_to_folder(original, tmp_path / "encoder", verify=False)
    report = restore_checkpoint(tmp_path / "encoder", original, tmp_path / "back", layout.slug)
    assert all_files(tmp_path / "back") == all_files(original)
    assert report.replaced and report.dtype_changes == {}


@pytest.mark.parametrize("slug", ["deepseek-ocr", "unlimited-ocr"])
def test_a_fine_tuned_encoder_goes_home(slug: str, tmp_path: Path) -> None:
    original, layout = tmp_path / "original", layout_of(slug)
    model = randomize(write_original(original, layout), seed=1)
    model.save_pretrained(tmp_path / "encoder", max_shard_size="500KB")  # type: ignore[operator]
    report = restore_checkpoint(tmp_path / "encoder", original, tmp_path / "back", slug)
    expected = {name: value.bfloat16() for name, value in state_dict_there(model, layout, "model.").items()}
    assert sorted(report.replaced) == sorted(expected) and report.unchanged == len(OTHERS)
    assert set(report.dtype_changes) == set(expected)
    assert report.dtype_changes["model.image_newline"] == ["float32", "bfloat16"]
    found: dict[str, torch.Tensor] = {}
    for number in (0, 1):
        path = tmp_path / "back" / f"part-{number}.safetensors"
        found |= load_file(path)
        with safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt", "note": str(number)}
        encoder = set(expected)
        assert other_bytes(path, encoder) == other_bytes(original / path.name, encoder)
    assert set(found) == set(expected | OTHERS)
    assert all(torch.equal(found[name], tensor) for name, tensor in (expected | OTHERS).items())
    before, after = all_files(original), all_files(tmp_path / "back")
    changed = {name for name in before if before[name] != after[name]}
    assert set(before) == set(after) and changed == {"part-0.safetensors", "part-1.safetensors"}


@torch.no_grad()
def test_transformers_reads_what_goes_home(tmp_path: Path) -> None:
    module = pytest.importorskip("transformers.models.unlimited_ocr.modeling_unlimited_ocr")
    sam = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "output_channels": 16}
    sam |= {"image_size": 256, "mlp_dim": 128, "global_attn_indexes": (1,), "downsample_channels": (40, 48)}
    clip = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    text = {"hidden_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"intermediate_size": 32, "vocab_size": 64, "pad_token_id": 0, "moe_intermediate_size": 8}
    vision = module.UnlimitedOcrVisionConfig(
        sam_config=sam, encoder_config=clip | {"image_size": 56, "patch_size": 14}
    )
    config = module.UnlimitedOcrConfig(
        vision_config=vision, text_config=text | {"n_routed_experts": 4}, image_token_id=5
    )
    peer = randomize(module.UnlimitedOcrForConditionalGeneration(config))
    peer.save_pretrained(tmp_path / "original")  # type: ignore[operator]
    convert_to_folder(tmp_path / "original", tmp_path / "encoder")
    tuned = randomize(DeepEncoder.from_pretrained(tmp_path / "encoder"), seed=2)
    tuned.save_pretrained(tmp_path / "tuned")  # type: ignore[operator]
    restore_checkpoint(tmp_path / "tuned", tmp_path / "original", tmp_path / "back", "unlimited-ocr")
    back = module.UnlimitedOcrForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    pixels = torch.randn(1, 3, 256, 256)
    theirs = back.get_image_features(pixels, None, [0], [[1, 1]]).pooler_output[0]
    torch.testing.assert_close(theirs, tuned(pixels).vision_tokens[0], atol=2e-5, rtol=0)


def test_single_files(tmp_path: Path) -> None:
    model = write_original(tmp_path / "original", DEEPSEEK_OCR, torch.float32)
    whole = tmp_path / "whole.safetensors"
    shards = [load_file(tmp_path / "original" / f"part-{number}.safetensors") for number in (0, 1)]
    save_file(shards[0] | shards[1], whole)
    tuned = randomize(model, seed=1)
    tuned.save_pretrained(tmp_path / "encoder")  # type: ignore[operator]
    for target in ("back.safetensors", "folder"):
        restore_checkpoint(tmp_path / "encoder", whole, tmp_path / target, "deepseek-ocr")
    assert (tmp_path / "folder" / "whole.safetensors").read_bytes() == (tmp_path / "back.safetensors").read_bytes()
    convert_to_folder(tmp_path / "back.safetensors", tmp_path / "again", verify=False)
    assert_same(DeepEncoder.from_pretrained(tmp_path / "again"), tuned)


def test_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    model = write_original(tmp_path / "original", DEEPSEEK_OCR, torch.float32)
    tuned = randomize(model, seed=1)
    tuned.save_pretrained(tmp_path / "encoder")  # type: ignore[operator]
    hub.repos |= {"some/original": tmp_path / "original", "some/encoder": tmp_path / "encoder"}
    options = HubOptions(cache_dir=tmp_path / "cache")
    restore_checkpoint("some/encoder", "some/original", tmp_path / "back", "deepseek-ocr", options)
    restore_checkpoint(tmp_path / "encoder", tmp_path / "original", tmp_path / "local", "deepseek-ocr")
    assert all_files(tmp_path / "back") == all_files(tmp_path / "local")


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    original = tmp_path / "original"
    model = write_original(original, DEEPSEEK_OCR, torch.float16)
    model.save_pretrained(tmp_path / "encoder")
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(tmp_path / "tiny")
    huge = randomize(model)
    huge.projector.layers[0].weight.data[0, 0] = 1e6  # type: ignore[union-attr, index]
    huge.save_pretrained(tmp_path / "huge")  # type: ignore[operator]
    lacking = shutil.copytree(tmp_path / "encoder", tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["image_newline"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    other = tmp_path / "other"
    write_original(other, layout_of("unlimited-ocr"))
    torch.save({"sam_model.pos_embed": torch.zeros(1)}, tmp_path / "original.pth")
    before = {path.name for path in tmp_path.iterdir()}
    for encoder, source, to, words in (
        ("original", original, "deepseek-ocr", "not a model of this package"),
        ("tiny", original, "deepseek-ocr", "has no place for|has shape"),
        ("huge", original, "deepseek-ocr", "too large for ORIGINAL.s dtype float16"),
        ("lacking", original, "deepseek-ocr", "ENCODER lacks 1 tensors: image_newline"),
        ("encoder", original, "got-ocr", "has the layout DeepSeek-OCR"),
        ("encoder", other, "deepseek-ocr", "has the layout Unlimited-OCR in transformers"),
        ("encoder", tmp_path / "original.pth", "deepseek-ocr", "is not a safetensors file"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            restore_checkpoint(tmp_path / encoder, source, tmp_path / "back", to)
        assert len(str(error.value).splitlines()) == 1
        assert {path.name for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="inside ORIGINAL"):
        restore_checkpoint(tmp_path / "encoder", original, original / "new" / "back", "deepseek-ocr")
    assert not (original / "new").exists()
    with pytest.raises(FileExistsError, match="tiny"):
        restore_checkpoint(tmp_path / "encoder", original, tmp_path / "tiny", "deepseek-ocr")
    with pytest.raises(FileNotFoundError, match="gone"):
        restore_checkpoint(tmp_path / "encoder", tmp_path / "gone", tmp_path / "back", "deepseek-ocr")
