"""Which files the commands agree to write."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from deepencoder.commands.errors import UserError
from deepencoder.commands.files import check_target

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
