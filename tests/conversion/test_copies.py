"""Copies of checkpoints as they are on the disk."""

import errno
import os
import sys
from pathlib import Path

import pytest

from deepencoder.conversion.copies import copy_into

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")


def test_files_and_folders(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "assets").mkdir(parents=True)
    (source / "assets" / "figure.bin").write_bytes(b"1")
    (source / "model.bin").write_bytes(b"2")
    target.mkdir()
    copy_into(source, target)
    copy_into(source / "assets" / "figure.bin", target)
    assert {path.name: path.read_bytes() for path in target.rglob("*.bin")} == {"figure.bin": b"1", "model.bin": b"2"}
    assert (target / "figure.bin").is_file() and (target / "assets" / "figure.bin").is_file()


@posix_only
def test_links_to_files_are_followed_and_those_to_folders_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    (tmp_path / "blob").write_bytes(b"1")
    (source / "model.bin").symlink_to("../blob")
    copy_into(source, target)
    assert not (target / "model.bin").is_symlink() and (target / "model.bin").read_bytes() == b"1"
    (source / "again").symlink_to(".")
    with pytest.raises(OSError, match="again cannot be copied: it is a link to a folder"):
        copy_into(source, target)


@posix_only
@pytest.mark.parametrize("kind", ["device", "pipe", "dangling link"])
def test_what_is_no_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    """`/dev/zero` would fill the disk."""
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    if kind == "pipe":
        os.mkfifo(source / "a")
    else:
        (source / "a").symlink_to("/dev/zero" if kind == "device" else "/missing/file")
    with pytest.raises(OSError) as error:
        copy_into(source, target)
    assert str(source / "a") in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"1" * 100_000)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        copy_into(tmp_path / "source", tmp_path / "target")
    assert error.value.errno == errno.ENOSPC
