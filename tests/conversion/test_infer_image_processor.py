"""Image processors, from the files beside a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder import DeepEncoderImageProcessor
from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.planning import plan_conversion

from .samples import write_checkpoint

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
    write_checkpoint(tmp_path, "deepseek-ocr", **files)
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
    "fields",
    [
        {"size": 65536},
        {"size": {"shortest_edge": 10**6}, "crop_size": 64},
        {"crop_size": {"height": 10**5, "width": 64}},
        {"size": {"height": -1, "width": 64}},
        {"rescale_factor": "a"},
        {"rescale_factor": {}},
        {"image_std": [1, 2]},
        {"do_rescale": [2], "size": 7.5},
    ],
)
@pytest.mark.parametrize("slug", ["sam", "clip-transformers", "vit-timm"])
def test_damaged_files_of_transformers_own_classes(slug: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """transformers' classes accept any value, and fail or take all memory when they are used."""
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    write_checkpoint(tmp_path, slug, preprocessor_config=statistics | fields)
    with pytest.raises(ValueError, match="image processor's file beside the checkpoint is damaged") as error:
        plan_conversion(open_checkpoint(tmp_path))
    assert len(str(error.value).splitlines()) == 1


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
    write_checkpoint(tmp_path / "original", slug, **files)
    convert_to_folder(tmp_path / "original", tmp_path / "target", verify=False)
    saved = json.loads((tmp_path / "target" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == name
    assert {key: saved[key] for key in facts} == facts
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "target", use_fast=False)).__name__.startswith(name)
    if name != "DeepEncoderImageProcessor":
        with pytest.raises(ValueError, match=name):
            DeepEncoderImageProcessor.from_original(tmp_path / "original")
