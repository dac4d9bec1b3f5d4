"""The command line, in real processes and in this one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from deepencoder import (
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoder,
    SamEncoderConfig,
)

from ..conftest import ROOT


def run(*arguments: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepencoder", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **kwargs)


def test_encode_writes_features_and_picture(example_page: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "new" / "features.safetensors", tmp_path / "picture.png"
    done = run("encode", example_page, "--mode", "gundam", "--output", output, "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert "903" in done.stdout and "2 x 3" in done.stdout and "1240 x 1754" in done.stdout
    assert "mean nothing" in " ".join(done.stderr.split())
    with safe_open(output, "pt") as file:
        facts = json.loads(file.metadata()["0"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert facts["view_grid"] == [16, 16] and facts["tile_grid"] == [2, 3] and facts["mode"] == "gundam"
    assert (facts["width"], facts["height"], facts["image"]) == (1240, 1754, str(example_page))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "0.vision_tokens": (903, 48),
        "0.last_hidden_state": (256, 64),
        "0.local_last_hidden_state": (6, 100, 64),
        "0.pooler_output": (32,),
    }
    with Image.open(picture) as drawn:
        assert drawn.height == 768 and drawn.width > 2 * 768
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "features.safetensors",
        "picture.png",
    ]
    assert output.stat().st_mode & 0o077 == picture.stat().st_mode & 0o077 == 0o666 & 0o077 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_encode_equals_the_model(cli: Any, example_page: Path, tmp_path: Path) -> None:
    model = DeepEncoder(DeepEncoderConfig.tiny()).eval()
    model.save_pretrained(tmp_path / "model")
    processor = DeepEncoderImageProcessor(mode="tiny")
    processor.save_pretrained(tmp_path / "model")
    small = tmp_path / "small.png"
    Image.new("L", (30, 20), 200).save(small)
    output = tmp_path / "features.safetensors"
    code, out, err = cli(
        "encode", example_page, small, "--model", tmp_path / "model", "-o", output, "--picture", tmp_path / "p.png"
    )
    assert code == 0 and "mean nothing" not in err
    assert (tmp_path / "p-0.png").is_file() and (tmp_path / "p-1.png").is_file()
    with safe_open(output, "pt") as file:
        for index, image in enumerate((example_page, small)):
            with torch.no_grad():
                expected = model(**processor(image, return_tensors="pt"))
            torch.testing.assert_close(file.get_tensor(f"{index}.vision_tokens"), expected.vision_tokens[0])
            assert json.loads(file.metadata()[str(index)])["mode"] == "tiny"


def test_a_bad_image_is_one_line_and_the_others_are_encoded(cli: Any, example_page: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("nonsense")
    output = tmp_path / "features.safetensors"
    code, out, err = cli("encode", tmp_path / "bad.png", example_page, "--mode", "tiny", "-o", output)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("Error")]
    assert len(lines) == 1 and "images[0]" in lines[0] and "bad.png" in lines[0]
    with safe_open(output, "pt") as file:
        assert "1.vision_tokens" in file.keys() and "0.vision_tokens" not in file.keys()  # noqa: SIM118


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "nothing.png"], ["images[0]", "nothing.png", "no such file"]),
        (["encode", "PAGE", "--output", "features.txt"], ["--output", ".safetensors", "features.txt"]),
        (["encode", "PAGE", "--picture", "picture.jpg"], ["--picture", ".png"]),
        (["encode", "PAGE", "--output", "PAGE/features.safetensors"], ["--output", "cannot write"]),
        (["encode", "PAGE", "--device", "cuda:99"], ["--device", "cuda:99"]),
        (["encode", "PAGE", "--device", "nonsense"], ["--device", "nonsense"]),
        (["encode", "PAGE", "--device", "meta"], ["--device", "meta"]),
        (["encode", "PAGE", "--output", "n" * 300 + ".safetensors"], ["--output", "too long"]),
        (["encode", "PAGE", "--output", "/proc/x.safetensors"], ["--output", "cannot write"]),
        (["encode", "PAGE", "--model", "FOLDER"], ["cannot be loaded"]),
        (["encode", "PAGE", "--model", "SAM"], ["deepencoder_sam", "encode needs"]),
        (["info", "FOLDER"], ["cannot be loaded"]),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(
    cli: Any, arguments: list[str], words: list[str], example_page: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    SamEncoder(SamEncoderConfig.tiny()).save_pretrained(tmp_path / "sam")
    places = {"PAGE": str(example_page), "FOLDER": str(tmp_path / "empty"), "SAM": str(tmp_path / "sam")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, out, err = cli(*arguments)
    assert code == 2
    errors = [line for line in err.splitlines() if line and "demo model" not in line and "mean nothing" not in line]
    assert len(errors) == 1 and errors[0].startswith("Error: "), err
    assert all(word in errors[0] for word in words), err


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


def test_names_are_no_markup(cli: Any, tmp_path: Path) -> None:
    page, output = tmp_path / "page[red].png", tmp_path / "o[x]:smile:.safetensors"
    Image.new("RGB", (20, 20)).save(page)
    code, out, _ = cli("encode", page, "--mode", "tiny", "-o", output)
    assert code == 0 and output.is_file()
    assert "page[red].png" in out and "o[x]:smile:.safetensors" in out


@pytest.mark.parametrize("arguments", [["encode"], ["encode", "page.png", "--mode", "huge"], ["nonsense"]])
def test_usage_mistakes_have_exit_code_2(cli: Any, arguments: list[str]) -> None:
    assert cli(*arguments)[0] == 2


def test_interrupted_work_leaves_no_file(example_page: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.safetensors"
    command = [
        sys.executable,
        "-m",
        "deepencoder",
        "encode",
        *[str(example_page)] * 200,
        "--mode",
        "gundam",
        "-o",
        str(output),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # the notice about the demo model: it has begun
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(
    cli: Any, example_page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "features.safetensors"
    output.write_text("old")

    for error, expected in ((KeyboardInterrupt(), 130), (OSError("the disk is full"), 2)):

        def fail(tensors: Any, path: Path, metadata: Any, error: BaseException = error) -> None:
            path.write_text("half")
            raise error

        monkeypatch.setattr("deepencoder.commands.encode.save_file", fail)
        code, _, err = cli("encode", example_page, "--mode", "tiny", "-o", output)
        assert code == expected and "Traceback" not in err
        assert output.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == [output.name]


def test_info(cli: Any, tmp_path: Path) -> None:
    code, out, _ = cli("info")
    assert code == 0 and "94,320" in out and "sam_encoder" in out and "image_newline" in out
    DeepEncoderConfig().save_pretrained(tmp_path)  # no weights: none are read
    code, out, _ = cli("info", tmp_path)
    assert code == 0 and "400,770,048" in out and "95,569,152" in out
    for mode, tokens in (("tiny", 73), ("small", 111), ("base", 273), ("large", 421), ("gundam", 903)):
        assert any(line.split()[0] == mode and str(tokens) in line for line in out.splitlines() if line.strip())
    SamEncoderConfig().save_pretrained(tmp_path / "sam")
    code, out, _ = cli("info", tmp_path / "sam")
    assert code == 0 and "SamEncoder" in out and "gundam" not in out


def test_the_demo_model_is_the_same_every_time(cli: Any, example_page: Path, tmp_path: Path) -> None:
    tokens = []
    for index in range(2):
        torch.manual_seed(index)
        output = tmp_path / f"{index}.safetensors"
        assert cli("encode", example_page, "--mode", "tiny", "-o", output, "--dtype", "float32")[0] == 0
        with safe_open(output, "pt") as file:
            tokens.append(file.get_tensor("0.vision_tokens"))
    assert torch.equal(*tokens)


@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["info", "--help"], ["convert", "--help"]])
def test_help(cli: Any, arguments: list[str]) -> None:
    code, out, _ = cli(*arguments)
    assert code == 0 and "Usage: deepencoder" in out
