"""The pages of a corpus: which are listed, in which order, and what fails."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import FailedPage, load_page

from ..conftest import ROOT
from .corpus import encoded, picture, same, write_pdf, write_pictures, write_tiff


def test_folders_are_listed_in_order_with_every_page(tmp_path: Path) -> None:
    write_pictures(tmp_path / "b", 2)
    write_pdf(tmp_path / "a.pdf", 3)
    (tmp_path / "c").mkdir()
    write_tiff(tmp_path / "c" / "d.tif", 2)
    (tmp_path / "notes.txt").write_text("left out")
    (tmp_path / ".hidden.png").write_bytes(encoded(1))
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    pages = list(list_pages([tmp_path]))
    names = [(os.path.relpath(page.source, tmp_path), page.page, page.index) for page in pages]
    assert names == [
        ("a.pdf", 0, 0),
        ("a.pdf", 1, 1),
        ("a.pdf", 2, 2),
        ("b/00000.png", 0, 3),
        ("b/00001.png", 0, 4),
        ("c/d.tif", 0, 5),
        ("c/d.tif", 1, 6),
    ]
    assert pages == list(list_pages([tmp_path]))
    assert same(pages[4], picture(1)) and same(pages[6], picture(1, (65, 96)))
    assert load_page(pages[0]).size == (144, 288)  # 72 x 144 points at 144 dpi
    # The rendered page equals the picture in it, apart from the losses of JPEG.
    (small,) = list_pages([tmp_path / "a.pdf"], dpi=72, wanted=lambda index, source, page: page == 1)
    difference = np.asarray(load_page(small)).astype(int) - np.asarray(picture(1, (72, 144)))
    assert small.index == 1 and np.abs(difference).mean() < 6


def test_a_file_that_two_sources_name_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "a", 3)
    one, pattern = tmp_path / "a" / "00001.png", str(tmp_path / "a" / "*.png")
    assert [page.page for page in list_pages([tmp_path, one, pattern, tmp_path])] == [0, 0, 0]
    sources = [Path(page.source).name for page in list_pages([one, pattern])]
    assert sources == ["00001.png", "00000.png", "00002.png"]
    sources = [Path(page.source).name for page in list_pages([one, tmp_path / "a"])]
    assert sources == ["00001.png", "00000.png", "00002.png"]
    # A glob that matches the folder, and relative and absolute paths of the same file.
    sources = [Path(page.source).name for page in list_pages([one, str(tmp_path / "?")])]
    assert sources == ["00001.png", "00000.png", "00002.png"]
    monkeypatch.chdir(tmp_path)
    assert len(list(list_pages(["./a/*.png", "a/00001.png", one]))) == 3


def test_unreadable_files_and_folders_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "a", 1)
    (tmp_path / "a" / "locked").mkdir()
    (tmp_path / "a" / "link.png").symlink_to("nowhere")
    (tmp_path / "a" / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    scan = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.chdir(tmp_path)
    for source, failed in (
        ("a", {"locked", "link.png", "pipe.png"}),
        ("a/*", {"locked", "link.png", "pipe.png", "link"}),
    ):
        pages = {Path(page.source).name: page for page in list_pages([source])}
        errors = {name: page.error for name, page in pages.items() if isinstance(page, FailedPage)}
        assert errors.keys() == failed and "regular file" in errors["pipe.png"]
        assert pages.keys() - failed == {"00000.png"}


def test_missing_sources_raise(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path / "*.png", "nothing"):
        with pytest.raises(FileNotFoundError, match="nothing"):
            list(list_pages([source]))
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="nothing"):  # before the first page is listed
        next(list_pages([tmp_path, tmp_path / "nothing"]))
    with pytest.raises(ValueError, match="dpi"):
        list(list_pages([tmp_path], dpi=0))


def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/a\xff.png"
    with open(path, "wb") as file:
        file.write(encoded(0))
    (page,) = list_pages([tmp_path])
    assert page.source.endswith("a\\udcff.png") and same(page, picture(0))


@pytest.mark.skipif(os.sep == "\\", reason="names have no backslashes")
def test_no_two_names_are_listed_as_the_same(tmp_path: Path) -> None:
    names = [b"a\xff.png", rb"a\udcff.png", rb"a\\udcff.png", b"a\\\xff.png", rb"a\b.png", rb"a\\b.png"]
    for number, name in enumerate(names):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(encoded(number))
    listed = [os.path.basename(page.source) for page in list_pages([tmp_path])]
    assert len(set(listed)) == len(names)
    # Ordinary names stay as they are, and so do most names with bytes that are not text.
    assert {r"a\udcff.png", r"a\b.png", r"a\\b.png"} <= set(listed)


def test_libraries_are_imported_when_they_are_needed(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "tests.programs.lazy_libraries", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
