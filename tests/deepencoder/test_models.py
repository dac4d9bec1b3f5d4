"""How the commands find and load models: the demo model, whole and damaged folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

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


def test_the_demo_model_is_the_same_every_time(cli: Any, example_page: Path, tmp_path: Path) -> None:
    tokens = []
    for index in range(2):
        torch.manual_seed(index)
        output = tmp_path / f"{index}.safetensors"
        assert cli("encode", example_page, "--mode", "tiny", "-o", output, "--dtype", "float32")[0] == 0
        with safe_open(output, "pt") as file:
            tokens.append(file.get_tensor("0.vision_tokens"))
    assert torch.equal(*tokens)


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
