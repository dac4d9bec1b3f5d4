"""Which files the commands agree to write."""

import sys
from pathlib import Path

import pytest

from deepencoder.commands.errors import UserError
from deepencoder.commands.files import check_target


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
