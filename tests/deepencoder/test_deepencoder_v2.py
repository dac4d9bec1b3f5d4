"""A DeepEncoderV2 on the command line, in `datasets.map`, in a corpus, and in the folder that is shared."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder import DeepEncoderImageProcessor, DeepEncoderV2, DeepEncoderV2Config
from deepencoder.extraction import FeatureExtractor

from ..conftest import randomize


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model, with its image processor."""
    model = randomize(DeepEncoderV2(DeepEncoderV2Config.tiny()))
    model.save_pretrained(tmp_path / "encoder")  # type: ignore[operator]
    DeepEncoderImageProcessor(mode="v2").save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@torch.no_grad()
def own_outputs(folder: Path, page: Any) -> Any:
    inputs = AutoImageProcessor.from_pretrained(folder)(page, return_tensors="pt")
    return AutoModel.from_pretrained(folder).eval()(**inputs)


def test_encode_and_info(folder: Path, example_page: Path, tmp_path: Path, cli: Any) -> None:
    code, out, err = cli("encode", "--model", folder, example_page, "--output", tmp_path / "page.safetensors")
    assert code == 0, err
    assert "1121" in out and "2 x 3" in out
    tensors, expected = load_file(tmp_path / "page.safetensors"), own_outputs(folder, str(example_page))
    torch.testing.assert_close(tensors["0.vision_tokens"], expected.vision_tokens[0], atol=1e-5, rtol=0)
    assert tensors["0.tokens"].shape == (256 + 6 * 144, 32) and tensors["0.boxes"].shape == (1121, 4)
    code, _, err = cli("encode", "--model", folder, example_page, "--picture", tmp_path / "page.png")
    assert code != 0 and "learned queries" in err and not (tmp_path / "page.png").exists()
    code, out, err = cli("info", folder)
    assert code == 0 and "DeepEncoderV2" in out and "1121 for an A4 page" in out, err
    assert "gundam" not in out and "pooled 32, tokens 32, vision_tokens 48" in out


def test_a_model_without_image_processor_gets_the_mode_v2(folder: Path, example_page: Path, cli: Any) -> None:
    (folder / "preprocessor_config.json").unlink()
    code, out, err = cli("encode", "--model", folder, example_page)
    assert code == 0 and "1121" in out, err


def test_datasets_map_and_extract(folder: Path, example_page: Path, tmp_path: Path, cli: Any) -> None:
    expected = own_outputs(folder, str(example_page))
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [str(example_page)]}, features=features)
    for mode, length in ((None, 1121), ("base", 257)):
        extractor = FeatureExtractor(folder, outputs=("pooled", "vision_tokens"), dtype="float32", mode=mode)
        mapped = data.map(extractor, batched=True, features=extractor.extend(data.features)).with_format("torch")
        assert mapped[0]["vision_tokens"].shape == (length, 48)
        torch.testing.assert_close(mapped[0]["pooled"], expected.pooler_output[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multi_vector.*queries"):
        FeatureExtractor(folder, outputs=("multi_vector",))
    code, _, err = cli(
        "extract", example_page, "--output", tmp_path / "out", "--model", folder, "--outputs", "pooled,tokens"
    )
    assert code == 0, err
    found = datasets.load_dataset("parquet", data_files=str(tmp_path / "out" / "**" / "*.parquet"), split="train")
    assert found[0]["num_tokens"] == 1121 and len(found[0]["tokens"]) == 256 + 6 * 144


def test_a_shared_folder_says_what_the_model_is(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder).eval()
    model.save_pretrained(tmp_path / "shared", self_contained=True)
    assert json.loads((tmp_path / "shared" / "preprocessor_config.json").read_text())["token_scheme"] == "queries"
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "256 for views of 256 pixels" not in card and "16 for views of 256 pixels" in card
    assert "| `v2` | 1024 x 1024, padded | 2 to 6 of 768 x 768 | 1121 for an A4 page at 150 dpi |" in card
    assert "`gundam`" not in card and "2601.20552" in card
