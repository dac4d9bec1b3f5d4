"""Which files the commands agree to write."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.commands.errors import UserError
from deepencoder.commands.files import check_target, files_of_model

from ..conftest import ROOT
from ..conversion.samples import build, layout_of, state_dict_there
from .processes import ENVIRONMENT


def test_files_that_can_be_written(tmp_path: Path) -> None:
    check_target(None, "--output", (".png",))
    for path in (tmp_path / "a.png", tmp_path / "new" / "folder" / "a.PNG"):
        check_target(path, "--output", (".png",))
    (tmp_path / "old.png").touch()
    check_target(tmp_path / "old.png", "--output", (".jpg", ".png"))
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path / "a.txt", "--output must end in .jpg or .png, got 'a.txt'."),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "file" / "a.png", "cannot write"),
        (tmp_path / f"{'n' * 300}.png", "cannot write"),
    ):
        with pytest.raises(UserError, match="--output") as caught:
            check_target(path, "--output", (".jpg", ".png"))
        assert words in str(caught.value)


def test_inputs_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "in.png").touch()
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "in.png", tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to("in.png")
    (tmp_path / "other.png").touch()
    inputs = ["https://example.com/in.png", tmp_path / "missing.png", "a\0b", tmp_path / "in.png"]
    check_target(tmp_path / "other.png", "--output", (".png",), inputs)
    check_target(tmp_path / "new.png", "--output", (".png",), inputs)
    for name in ("in.png", "hard.png", "soft.png", "folder/../in.png", "missing.png"):
        with pytest.raises(UserError, match="^--output: .* is an input, and is not overwritten.$"):
            check_target(tmp_path / name, "--output", (".png",), inputs)


def test_the_files_of_a_model(tmp_path: Path) -> None:
    assert files_of_model(None) == [] and files_of_model("some/model") == []
    names = ["config.json", "model.safetensors", "modeling_x.py"]
    for name in (*names, "features.safetensors", "graph.onnx"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in files_of_model(str(tmp_path))) == names
    found = files_of_model(str(tmp_path / "features.safetensors"))
    assert sorted(path.name for path in found) == ["config.json", "features.safetensors", "modeling_x.py"]
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("damaged")
    assert "config.json" in {path.name for path in files_of_model(str(tmp_path))}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, bytes]:
    """A page, a model, and links to the model's weights; returned are their contents."""
    Image.new("RGB", (20, 20)).save(tmp_path / "q.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "q-0.png")
    model = DeepEncoder(DeepEncoderConfig.tiny())
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "model" / "model.safetensors")
    for name in ("graph.onnx", "other.onnx.data", "graph.pt2"):
        os.link(tmp_path / "model" / "model.safetensors", tmp_path / name)
    layout = layout_of("deepseek-ocr")
    (tmp_path / "original").mkdir()
    save_file(state_dict_there(build(layout), layout), tmp_path / "original" / "model.safetensors")
    (tmp_path / "original" / "config.json").write_text("{}")
    return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "q.png", "--picture", "q.png"],
        ["encode", "q-0.png", "model/config.json", "--picture", "q.png"],
        ["encode", "q.png", "--model", "model", "-o", "model/model.safetensors"],
        ["encode", "q.png", "--model", "model", "-o", "link.safetensors"],
        ["encode", "q.png", "--model", "original/model.safetensors", "-o", "original/model.safetensors"],
        ["convert", "original", "target", "--report", "original/config.json"],
        ["convert", "original", "target.json", "--report", "target.json"],
        ["convert", "--to", "deepseek-ocr", "model", "original", "target", "--report", "model/config.json"],
        ["convert", "--to", "deepseek-ocr", "model", "original", "target", "--report", "original/config.json"],
        ["export", "model", "graph.onnx", "--size", "64"],
        ["export", "model", "other.onnx", "--size", "64"],
        ["export", "model", "graph.pt2", "--size", "64"],
    ],
)
def test_no_command_overwrites_its_inputs(
    arguments: list[str], cli: Any, inputs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*arguments)
    assert code == 2 and len(err.splitlines()) == 1 and "is an input, and is not overwritten." in err, err
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == inputs


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this folder")
def test_a_folder_that_takes_no_files() -> None:
    with pytest.raises(UserError, match="cannot write /proc/a.png"):
        check_target(Path("/proc/a.png"), "--output", (".png",))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Unix, and the words are those of Linux")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "page.png")
    layout = layout_of("deepseek-ocr")
    save_file(state_dict_there(build(layout), layout), tmp_path / "original.safetensors")
    before = sorted(tmp_path.iterdir())
    features, target, report = tmp_path / "features.safetensors", tmp_path / "target", tmp_path / "report.json"
    original = str(tmp_path / "original.safetensors")
    commands = [
        ["encode", str(tmp_path / "page.png"), "-o", str(features)],
        ["convert", original, str(target), "--report", str(report)],
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "programs" / "limited_files.py", json.dumps(commands)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["exit code 2"] * 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"Error: cannot write {features}: File too large",
        f"Error: {original} cannot be converted: cannot write {target}: File too large",
    ]
    assert sorted(tmp_path.iterdir()) == before
