"""How the commands find and load models: the one that ships with the package, whole and damaged folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import deepencoder
from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "lacking tensors":
        tensors = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("projector")}
        save_file(tensors, weights, {"format": "pt"})
    elif how == "misshapen tensor":
        save_file(load_file(weights) | {"image_newline": torch.zeros(3)}, weights, {"format": "pt"})
    elif how == "damaged weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "damaged config":
        config.write_text(config.read_text().replace('"projection_dim": 48', '"projection_dim": "abc"'))
    elif how == "nested config":
        config.write_text("[" * 100_000)
    elif how == "damaged processor":
        (folder / "preprocessor_config.json").write_text("{nonsense")
    elif how == "foreign processor":
        CLIPImageProcessorPil().save_pretrained(folder)
    else:
        DeepEncoderImageProcessor(size={"height": 100, "width": 100}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("lacking tensors", ["lacks 2 tensors", "projector.layers.0.bias"]),
        ("misshapen tensor", ["cannot be loaded"]),
        ("damaged weights", ["cannot be loaded"]),
        ("damaged config", ["projection_dim", "abc"]),
        ("nested config", ["cannot be loaded", "recursion"]),
        ("damaged processor", ["image processor", "cannot be loaded"]),
        ("foreign processor", ["image processor", "CLIPImageProcessor"]),
        ("unfit processor", ["height", "16", "100"]),
    ],
)
def test_damaged_models_are_one_line(cli: Any, how: str, words: list[str], example_page: Path, tmp_path: Path) -> None:
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(tmp_path)
    DeepEncoderImageProcessor().save_pretrained(tmp_path)
    spoil(tmp_path, how)
    code, out, err = cli("encode", example_page, "--model", tmp_path)
    assert code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("Error: "), err
    assert all(word in err for word in words), err


def test_the_shipped_model_is_used_where_none_is_named(cli: Any, example_page: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.safetensors"
    code, _, err = cli("encode", example_page, "--mode", "tiny", "-o", output)
    assert code == 0 and err.splitlines() == [
        "No --model given: using page-reader, the small model that ships with the package."
    ]
    model = DeepEncoder.from_pretrained(deepencoder.page_reader()).eval()
    inputs = DeepEncoderImageProcessor(mode="tiny")(str(example_page), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).vision_tokens[0]
    with safe_open(output, "pt") as file:
        torch.testing.assert_close(file.get_tensor("0.vision_tokens"), expected)
        assert json.loads(file.metadata()["0"])["model"] == "page-reader"


@pytest.mark.parametrize("command", ["info", "encode", "export", "convert", "extract"])
def test_a_folder_that_does_not_exist_is_one_line(
    cli: Any, command: str, example_page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {
        "info": ["./nothere"],
        "encode": [str(example_page), "--model", "./nothere"],
        "export": ["./nothere", "graph.onnx", "--mode", "tiny"],
        "convert": ["./nothere", "converted"],
        "extract": [str(example_page), "--model", "./nothere", "--output", "corpus"],
    }
    code, _, err = cli(command, *arguments[command])
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert "./nothere" in err and ("no such file or folder" in err or "no file or folder" in err), err
    assert not list(tmp_path.iterdir())
