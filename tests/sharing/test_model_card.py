"""The model card states what is known, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from deepencoder import (
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoderConfig,
)
from deepencoder.sharing.model_card import CARD_MARK, make_model_card
from deepencoder.sharing.repository import complete_folder

CONFIGS = {
    "deepencoder": DeepEncoderConfig.tiny(),
    "published": DeepEncoderConfig(),
    "sam": SamEncoderConfig.tiny(downsample_channels=()),
    "sam with compressor": SamEncoderConfig.tiny(),
    "clip": ClipVisionEncoderConfig.tiny(post_norm="pooled"),
    "clip half": ClipVisionEncoderConfig(use_patch_embedding=False),
    "vit": ClipVisionEncoderConfig(post_norm="all", use_pre_norm=False, use_patch_bias=True, hidden_act="gelu"),
}
REPORT: dict[str, Any] = {
    "source": "deepseek-ai/DeepSeek-OCR",
    "commit": "abc123",
    "layout": "DeepSeek-OCR",
    "dtype": "bfloat16",
    "mapped": {"a": ["b"], "c": ["d", "e"]},
    "unused": {"f": "not a part of the encoder"},
    "initialized": [],
}


def make_card(folder: Path, kind: str = "deepencoder", **options: Any) -> ModelCard:
    return make_model_card(folder, CONFIGS[kind], 1234567, **options)


def write_report(folder: Path, **changes: Any) -> None:
    (folder / "conversion_report.json").write_text(json.dumps(REPORT | changes))


def test_the_card_of_a_converted_folder(converted: Path) -> None:
    report = json.loads((converted / "conversion_report.json").read_text())
    assert report["license"] == "mit"
    complete_folder(converted)
    card = ModelCard.load(converted / "README.md")
    assert card.data.license == "mit" and card.data.base_model is None
    assert {"deepencoder", "ocr"} <= set(card.data.tags or [])
    model = DeepEncoder.from_pretrained(converted)
    assert f"{model.num_parameters():,} parameters" in card.text
    assert "Converted from `original`, recognised as" in card.text
    assert str(converted.parent) not in (converted / "README.md").read_text()
    if report["verification"].get("outputs"):
        assert "UnlimitedOcrVisionModel" in card.text
    picture = Image.open(converted / "encoding.png")
    assert min(picture.size) > 100 and "](encoding.png)" in card.text


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_card_has_usage_limits_and_valid_metadata(kind: str, tmp_path: Path) -> None:
    card = make_card(tmp_path, kind, repo_id="some/model", tags=["mine"])
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
    assert card.text.lstrip().startswith("# model\n") and "1,234,567 parameters" in card.text
    assert 'AutoModel.from_pretrained("some/model", trust_remote_code=True)' in card.text
    assert "it returns features, and no text" in card.text and "languages" in card.text and "resolution" in card.text
    assert "mine" in (card.data.tags or []) and card.text.rstrip().endswith(CARD_MARK)


def test_the_package_is_installed_from_its_repository(tmp_path: Path) -> None:
    text = make_card(tmp_path).text
    assert "`pip install .`" in text and "pip install deepencoder" not in text


def test_the_licence_is_stated_only_where_it_is_known(tmp_path: Path) -> None:
    unknown = make_card(tmp_path)
    assert unknown.data.license is None and "license" not in unknown.data.to_dict()
    assert "Weights: no licence is stated" in unknown.text
    assert make_card(tmp_path, license="mit").data.license == "mit"
    assert "Nothing is recorded here of where the weights come from" in unknown.text
    write_report(tmp_path)
    assert make_card(tmp_path).data.license is None and "Nothing is recorded" not in make_card(tmp_path).text
    write_report(tmp_path, license="apache-2.0")
    card = make_card(tmp_path)
    assert card.data.license == "apache-2.0" and "Weights: `apache-2.0`." in card.text
    assert make_card(tmp_path, license="mit").data.license == "mit"


def test_the_base_model_is_a_checkpoint_on_the_hub(tmp_path: Path) -> None:
    write_report(tmp_path)
    card = make_card(tmp_path)
    assert card.data.base_model == "deepseek-ai/DeepSeek-OCR"
    assert "Converted from `deepseek-ai/DeepSeek-OCR` at commit `abc123`" in card.text
    assert "3 tensors used, 1 not used, 0 newly initialised, stored in bfloat16" in card.text


@pytest.mark.parametrize(
    "source", ["/home/me/secret/checkpoint", r"C:\Users\me\secret\checkpoint", "secret/checkpoint"]
)
def test_local_paths_are_not_shown(source: str, tmp_path: Path) -> None:
    write_report(tmp_path, source=source, commit=None)
    card = make_card(tmp_path)
    assert card.data.base_model is None
    assert "Converted from `checkpoint`, " in card.text and "secret" not in str(card)


def test_newly_initialised_weights_are_named(tmp_path: Path) -> None:
    write_report(tmp_path, initialized=["projector.weight"])
    text = make_card(tmp_path).text
    assert "**Newly initialised, to be trained:** `projector.weight`." in text
    assert "train them before using the features" in text


@pytest.mark.parametrize(
    ("kind", "named", "absent"),
    [
        ("published", ["SAM ViT-B: 12 layers of width 768", "CLIP-L: 24 layers of width 1024"], []),
        ("clip half", ["CLIP-L: 24 layers of width 1024"], ["SAM"]),
        ("deepencoder", ["SAM ViT: 3 layers of width 32", "CLIP ViT: 2 layers of width 32"], ["CLIP-L", "ViT-B"]),
        ("clip", ["CLIP ViT: 2 layers of width 32"], ["CLIP-L"]),
        # As wide and deep as CLIP-L, but not a CLIP.
        ("vit", ["ViT: 24 layers of width 1024"], ["CLIP-L", "CLIP image tower"]),
        ("sam", ["A SAM image encoder."], ["Compressor", "CLIP-L", "compress"]),
        ("sam with compressor", ["Compressor: convolutions of stride 2 to 24 and 32 channels, 16 times"], ["CLIP-L"]),
    ],
)
def test_parts_are_named_by_their_sizes(kind: str, named: list[str], absent: list[str], tmp_path: Path) -> None:
    text = make_card(tmp_path, kind).text
    assert all(words in text for words in named), text
    assert not any(words in text for words in absent), text


def test_the_layout_of_vision_tokens(tmp_path: Path) -> None:
    text = make_card(tmp_path, "published").text
    assert (
        "one tensor `(tokens, 1280)` per image: the tiles' rows, then the view's rows, a newline token after" in text
    )
    assert "one separator at the end" in text and "get_number_of_image_tokens(height, width, mode=...)" in text
    for row in ("| `base` | 1024 x 1024, padded |  | 273 |", "| `tiny` | 512 x 512, squashed |  | 73 |"):
        assert row in text
    assert "| `gundam` | 1024 x 1024, padded | 2 to 9 of 640 x 640 | 903 for an A4 page" in text
    text = make_card(tmp_path, image_processor=DeepEncoderImageProcessor(max_patches=4)).text
    assert "2 to 4 of 640 x 640" in text
    assert "Vision tokens" not in make_card(tmp_path, "sam with compressor").text


def test_costs_are_stated_for_the_size_that_was_measured(tmp_path: Path) -> None:
    card = make_model_card(tmp_path, CONFIGS["published"], 400_770_048)
    assert "one page on two cores of an Intel Xeon with AMX" in card.text
    assert "| `base` | 3.99 s, 0.18 GB | 1.29 s, 0.14 GB |" in card.text
    assert "The weights take 1.6 GB in float32, 802 MB in bfloat16 or float16." in card.text
    for kind in ("deepencoder", "sam"):
        assert "Costs" not in make_card(tmp_path, kind).text


def test_the_weights_in_the_folder_are_described(converted: Path) -> None:
    complete_folder(converted)
    size = (converted / "model.safetensors").stat().st_size
    (line,) = (line for line in (converted / "README.md").read_text().splitlines() if "here they are" in line)
    assert f"; here they are {size / 1e6:.3g} MB in float32." in line


def test_where_a_token_lies_is_linked(tmp_path: Path) -> None:
    text = make_card(tmp_path).text
    assert "get_token_layout(height, width)" in text and "blob/main/docs/tokens.md)" in text


@pytest.mark.parametrize(
    ("kind", "cited"),
    [
        ("deepencoder", {"wei2025deepseekocr", "kirillov2023segment", "radford2021learning"}),
        ("sam with compressor", {"wei2025deepseekocr", "kirillov2023segment"}),
        ("sam", {"kirillov2023segment"}),
        ("clip half", {"wei2025deepseekocr", "radford2021learning"}),
        ("clip", {"radford2021learning"}),
        ("vit", set()),
    ],
)
def test_citations(kind: str, cited: set[str], tmp_path: Path) -> None:
    text = make_card(tmp_path, kind).text
    found = {line.removeprefix("@article{").rstrip(",") for line in text.splitlines() if line.startswith("@article{")}
    assert found == cited
    assert ("```bibtex" in text) == bool(cited)
    assert text.count("{") == text.count("}")
    if "wei2025deepseekocr" in cited:
        assert "title = {DeepSeek-OCR: Contexts Optical Compression}" in text
