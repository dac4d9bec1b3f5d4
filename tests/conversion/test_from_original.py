"""Models and image processors from checkpoints of other code in one step, from files on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder import ClipVisionEncoder, DeepEncoder, DeepEncoderImageProcessor, SamEncoder
from deepencoder.conversion.from_original import convert_to_folder

from .samples import assert_same, build, inputs_of, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


def write(folder: Path, slug: str, **files: dict[str, Any]) -> Any:
    """Write a checkpoint with JSON files beside it; returns the model in it."""
    layout = layout_of(slug)
    model = build(layout)
    folder.mkdir(exist_ok=True)
    save_file(state_dict_there(model, layout), folder / "model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return model


def test_each_class_loads_its_own(tmp_path: Path) -> None:
    for slug, model_class in (("deepseek-ocr", DeepEncoder), ("got-ocr", SamEncoder), ("clip", ClipVisionEncoder)):
        expected = write(tmp_path / slug, slug)
        model = model_class.from_original(tmp_path / slug)
        assert type(model) is model_class and not model.training and model.dtype == torch.float32
        assert_same(model, expected)
        for other in {DeepEncoder, SamEncoder, ClipVisionEncoder} - {model_class}:
            with pytest.raises(ValueError, match=f"holds a '{model_class.config_class.model_type}', not a"):
                other.from_original(tmp_path / slug)


@torch.no_grad()
def test_options_of_from_pretrained_are_taken(tmp_path: Path) -> None:
    expected = write(tmp_path, "deepseek-ocr")
    assert DeepEncoder.from_original(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    model = DeepEncoder.from_original(tmp_path / "model.safetensors", attn_implementation="eager", device_map="cpu")
    assert model.config.sam_config._attn_implementation == "eager"
    pixels = inputs_of(model)
    torch.testing.assert_close(model(pixels).last_hidden_state, expected(pixels).last_hidden_state)
    assert DeepEncoder.from_original(tmp_path, num_attention_heads=6).config.clip_config.num_attention_heads == 6


def test_the_file_may_go_when_the_model_is_there(tmp_path: Path) -> None:
    expected = write(tmp_path, "deepseek-ocr")
    torch.save(state_dict_there(expected, DEEPSEEK_OCR), tmp_path / "model.pth")
    from_pickle = DeepEncoder.from_original(tmp_path / "model.pth")
    with open(tmp_path / "model.pth", "r+b") as file:
        file.write(bytes((tmp_path / "model.pth").stat().st_size))
    assert_same(from_pickle, expected)
    model = DeepEncoder.from_original(tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(bytes((tmp_path / "model.safetensors").stat().st_size))
    assert_same(model, expected)


def test_verification_can_be_demanded(tmp_path: Path) -> None:
    pytest.importorskip("transformers.models.unlimited_ocr")
    expected = write(tmp_path, "deepseek-ocr")
    assert_same(DeepEncoder.from_original(tmp_path, verify=True), expected)
    tensors = state_dict_there(expected, DEEPSEEK_OCR)
    tensors["image_newline"][0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be verified"):
        DeepEncoder.from_original(tmp_path, verify=True)


def test_a_converted_model_is_like_any_other(tmp_path: Path) -> None:
    expected = write(tmp_path / "original", "deepseek-ocr")
    DeepEncoder.from_original(tmp_path / "original").save_pretrained(tmp_path / "saved")
    assert_same(DeepEncoder.from_pretrained(tmp_path / "saved"), expected)


BASE = {"height": 1024, "width": 1024}
UNLIMITED = {"image_processor_type": "UnlimitedOcrImageProcessor", "size": BASE, "max_patches": 32, "tile_size": 640}
MODES = [
    ({}, "base"),
    ({"config": {"candidate_resolutions": [[1024, 1024]]}}, "base"),
    ({"config": {"candidate_resolutions": [[512, 512]]}}, "tiny"),
    ({"processor_config": {"candidate_resolutions": [[1280, 1280]]}}, "large"),
    ({"config": {"vision_config": {"image_size": 640}}}, "small"),
    ({"config": {"candidate_resolutions": [[800, 800]]}}, None),
    ({"preprocessor_config": UNLIMITED | {"crop_to_patches": True}}, "gundam"),
    ({"processor_config": {"image_processor": UNLIMITED | {"crop_to_patches": False}}}, "base"),
    ({"preprocessor_config": UNLIMITED | {"crop_to_patches": False, "size": {"height": 640, "width": 640}}}, "small"),
]


@pytest.mark.parametrize(
    ("files", "mode"), MODES, ids=[str(mode) + str(index) for index, (_, mode) in enumerate(MODES)]
)
def test_the_mode_is_the_one_that_the_configuration_names(
    files: dict[str, Any], mode: str | None, tmp_path: Path
) -> None:
    write(tmp_path, "deepseek-ocr", **files)
    processor = DeepEncoderImageProcessor.from_original(tmp_path)
    assert processor.mode == mode
    if mode == "gundam":
        assert processor.max_patches == 32
    if mode is None:
        assert processor.size["height"] == 800 and processor.do_pad
    assert DeepEncoderImageProcessor.from_original(tmp_path, mode="tiny").mode == "tiny"
    assert DeepEncoderImageProcessor.from_original(tmp_path, max_patches=5).max_patches == 5
    with pytest.raises(TypeError, match="revison"):
        DeepEncoderImageProcessor.from_original(tmp_path, revison="main")


@pytest.mark.parametrize(
    ("slug", "files", "name", "facts"),
    [
        (
            "got-ocr",
            {},
            "DeepEncoderImageProcessor",
            {"do_pad": False, "image_mean": [0.48145466, 0.4578275, 0.40821073]},
        ),
        ("sam", {}, "SamImageProcessor", {"size": {"longest_edge": 128}}),
        ("clip", {}, "CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        (
            "vit-timm",
            {"config": {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}},
            "ViTImageProcessor",
            {"image_mean": [0.1, 0.2, 0.3]},
        ),
        (
            "clip-transformers",
            {"preprocessor_config": {"image_mean": [0.5, 0.4, 0.3], "size": {"shortest_edge": 70}}},
            "CLIPImageProcessor",
            {"image_mean": [0.5, 0.4, 0.3], "size": {"shortest_edge": 70}},
        ),
    ],
)
def test_towers_keep_the_processor_of_their_family(
    slug: str, files: dict[str, Any], name: str, facts: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "original", slug, **files)
    convert_to_folder(tmp_path / "original", tmp_path / "target", verify=False)
    saved = json.loads((tmp_path / "target" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == name
    assert {key: saved[key] for key in facts} == facts
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "target", use_fast=False)).__name__.startswith(name)
    if name != "DeepEncoderImageProcessor":
        with pytest.raises(ValueError, match=name):
            DeepEncoderImageProcessor.from_original(tmp_path / "original")


def test_without_the_package_it_says_what_to_install() -> None:
    """The payload of a model repository asks for the converter by name, and does not bring it."""
    code = """
import sys
from deepencoder.modeling import DeepEncoder
sys.modules["deepencoder.conversion"] = None
try:
    DeepEncoder.from_original("somewhere")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install deepencoder" in done.stdout, done.stderr
