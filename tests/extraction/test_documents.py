"""What a corpus is: what is listed, in which order, and what a page becomes."""

import errno
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from deepencoder.extraction import documents
from deepencoder.extraction.documents import list_pages
from deepencoder.extraction.pages import Page, PageError, load_page, to_page_image

from ..conftest import ROOT
from .corpus import (
    encoded,
    picture,
    write_bad_pages,
    write_parquet,
    write_pdf,
    write_pictures,
    write_tar,
    write_tiff,
)


def same(page: Page, image: Image.Image) -> bool:
    return np.array_equal(np.asarray(load_page(page)), np.asarray(image.convert("RGB")))


def test_a_folder_is_listed_in_order_with_all_pages_of_its_documents(tmp_path: Path) -> None:
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
    # Rendered, a page is what was put into it, up to JPEG's losses.
    (small,) = list_pages([tmp_path / "a.pdf"], dpi=72, wanted=lambda index, source, page: page == 1)
    difference = np.asarray(load_page(small)).astype(int) - np.asarray(picture(1, (72, 144)))
    assert small.index == 1 and np.abs(difference).mean() < 6


def test_content_tells_what_a_file_is(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", 2).rename(tmp_path / "a.jpg")
    write_tiff(tmp_path / "b.tif", 2).rename(tmp_path / "b.png")
    assert [page.kind for page in list_pages([tmp_path])] == ["pdf", "pdf", "tiff", "tiff"]


@pytest.mark.parametrize("big", [False, True])
def test_frames_of_a_cut_tiff_are_not_lost_in_silence(tmp_path: Path, big: bool) -> None:
    first, *others = (picture(number, (64, 96)) for number in range(5))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, big_tiff=big)
    content = (tmp_path / "a.tif").read_bytes()
    assert len(list(list_pages([tmp_path]))) == 5
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    first_page, second_page, *cut = list_pages([tmp_path])
    assert same(first_page, picture(0, (64, 96))) and same(second_page, picture(1, (64, 96))) and cut
    for page in cut:
        with pytest.raises(PageError):
            load_page(page)


def test_what_two_sources_name_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "a", 3)
    one, pattern = tmp_path / "a" / "00001.png", str(tmp_path / "a" / "*.png")
    assert [page.page for page in list_pages([tmp_path, one, pattern, tmp_path])] == [0, 0, 0]
    sources = [Path(page.source).name for page in list_pages([one, pattern])]
    assert sources == ["00001.png", "00000.png", "00002.png"]
    sources = [Path(page.source).name for page in list_pages([one, tmp_path / "a"])]
    assert sources == ["00001.png", "00000.png", "00002.png"]
    # A glob that matches the folder; and other ways to write a name.
    sources = [Path(page.source).name for page in list_pages([one, str(tmp_path / "?")])]
    assert sources == ["00001.png", "00000.png", "00002.png"]
    monkeypatch.chdir(tmp_path)
    assert len(list(list_pages(["./a/*.png", "a/00001.png", one]))) == 3


def test_orientation_and_depth_are_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.full((3, 4), 0x80FF, np.uint16)).save(tmp_path / "b.png")
    turned, deep = (load_page(page) for page in list_pages([tmp_path]))
    assert turned.size == (120, 90) and deep.getpixel((0, 0)) == (0x80, 0x80, 0x80)


def test_parquet_is_read_a_row_group_at_a_time_and_only_where_wanted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 5)
    pages = list(list_pages([path]))
    assert [page.page for page in pages] == [0, 1, 2, 3, 4] and same(pages[4], picture(4))
    (page,) = list_pages([path], wanted=lambda index, source, number: number == 3)
    assert same(page, picture(3)) and page.index == 3
    with pytest.raises(ValueError, match="column must be one of name, image.*'nothing'"):
        list(list_pages([path], column="nothing"))
    # A table that happens to lie in a folder ends nothing.
    (tmp_path / "folder").mkdir()
    write_parquet(tmp_path / "folder" / "b.parquet", 1)
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["x"]}), tmp_path / "folder" / "a.parquet")
    failed, page = list_pages([tmp_path / "folder"])
    assert "image column: none" in failed.error and same(page, picture(0))
    # Rows of text are no images, each by itself.
    with pytest.raises(PageError, match="no image"):
        load_page(next(list_pages([path], column="name")))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), 3, mode)
    pages = list(list_pages([path]))
    assert [page.source for page in pages] == [f"{path}::part/{number:04d}.png" for number in range(3)]
    assert all(same(page, picture(number)) for number, page in enumerate(pages))
    assert [page.data is None for page in pages] == [mode == "w"] * 3  # found again by its place


def test_a_cut_archive_fails_where_it_ends(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", 3)
    path.write_bytes(path.read_bytes()[:20_000])
    *pages, last = list_pages([path])
    assert pages and same(pages[0], picture(0))
    with pytest.raises(PageError):
        load_page(last)


def test_no_member_of_an_archive_is_lost(tmp_path: Path) -> None:
    """Neither behind a damaged header, nor by its name, nor as it stands behind a PDF."""
    path = write_tar(tmp_path / "damaged.tar", 4)
    with tarfile.open(path) as archive:
        place = archive.getmembers()[4].offset
    content = path.read_bytes()
    path.write_bytes(content[:place] + b"\xff" * 512 + content[place + 512 :])
    first, second, end = list_pages([path])
    assert same(second, picture(1)) and "the archive cannot be read" in end.error

    path = tmp_path / "names.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(write_pdf(tmp_path / "a.pdf", 1), "a.pdf")
        for number in range(2):
            member = tarfile.TarInfo("a.png")
            member.size = len(encoded(number))
            archive.addfile(member, io.BytesIO(encoded(number)))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        archive.addfile(link)
    first, second, failed = list_pages([path])
    assert (first.source, first.page) == (second.source, 0) and second.page == 1
    assert same(first, picture(0)) and same(second, picture(1)) and "a link" in failed.error


def test_a_cut_compressed_archive_fails_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 256, (60, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "a.png")
            archive.add(tmp_path / "a.png", f"{number}.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kinds = {os.path.basename(page.source): page.kind for page in list_pages([path])}
    assert kinds == {"a.tar.gz::0.png": "image", "a.tar.gz::1.png": "failed", "a.tar.gz": "failed"}


def test_saved_datasets(tmp_path: Path) -> None:
    images = [{"bytes": encoded(number), "path": None} for number in range(3)]
    features = datasets.Features({"page": datasets.Image(), "name": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"page": images, "name": ["a", "b", "c"]}, features=features)
    data.save_to_disk(tmp_path / "one")
    pages = list(list_pages([tmp_path / "one"]))
    assert len(pages) == 3 and same(pages[2], picture(2))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="split must be one of train, test"):
        list(list_pages([tmp_path / "two"]))
    (page,) = list_pages([tmp_path / "two"], split="test")
    assert same(page, picture(1))


def test_hub_ids_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own streaming, over a folder; only the name is not the Hub's."""
    write_parquet(tmp_path / "train.parquet", 4)
    load, names = datasets.load_dataset, []

    def load_dataset(name: str, **kwargs: object) -> object:
        names.append(name)
        return load(str(tmp_path), **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train"])
    pages = list(list_pages(["someone/pages"], column="image"))
    assert names == ["someone/pages"] and pages[0].source == "someone/pages::train"
    assert len(pages) == 4 and same(pages[3], picture(3))


def test_folders_of_images_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed, their rows are addresses; files of this machine are not read for what a dataset says."""
    picture(2).save(tmp_path / "local.png")
    addresses = ["hf://datasets/someone/pages@main/a.png", "zip://b.png::hf://datasets/someone/pages@main/b.zip"]
    rows = [{"bytes": None, "path": path} for path in (*addresses, str(tmp_path / "local.png"))]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": rows}, features=features).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    content = {address: encoded(number) for number, address in enumerate(addresses)}
    monkeypatch.setattr("datasets.utils.file_utils.xopen", lambda path, mode: io.BytesIO(content[path]))
    first, second, local = list_pages(["someone/pages"], split="train")
    assert same(first, picture(0)) and same(second, picture(1))
    assert local.error == "there is no image in this row"


def test_bad_pages_have_one_error_with_a_reason(tmp_path: Path) -> None:
    reasons = write_bad_pages(tmp_path / "bad")
    found = {}
    for page in list_pages([tmp_path / "bad"]):
        with pytest.raises(PageError) as caught:
            load_page(page)
        found[Path(page.source).name] = str(caught.value)
    print(found)
    assert found.keys() == reasons.keys()
    for name, word in reasons.items():
        assert word in found[name] and "\n" not in found[name] and str(tmp_path) not in found[name], found[name]


def test_what_cannot_be_read_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert {name for name, page in pages.items() if page.kind == "failed"} == failed
        assert pages.keys() - failed == {"00000.png"} and "regular file" in pages["pipe.png"].error


def test_no_program_is_started_for_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript runs in Ghostscript, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: picture(0).im)
    (page,) = list_pages([tmp_path])
    with pytest.raises(PageError, match="not an image"):
        load_page(page)


def test_a_pdf_that_crashes_its_reader_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write_pdf(tmp_path / f"{name}.pdf", 1)
    open_pdf = documents.open_pdf

    def crash(path: str) -> Any:
        if path.endswith("b.pdf"):
            os.kill(os.getpid(), signal.SIGKILL)
        return open_pdf(path)

    monkeypatch.setattr(documents, "open_pdf", crash)
    documents._pdf_counter.cache_clear()  # another process may have been started, without this
    try:
        pages = list(list_pages([tmp_path]))
    finally:
        documents._pdf_counter.cache_clear()
    assert [page.kind for page in pages] == ["pdf", "failed", "pdf"]
    assert "the PDF cannot be read: its process died of signal 9" in pages[1].error


def test_cells_of_an_image_column() -> None:
    expected = np.asarray(picture(0))
    for value in (picture(0), encoded(0), {"bytes": encoded(0), "path": None}, expected):
        assert np.array_equal(np.asarray(to_page_image(value)), expected)
    for value in (None, {"bytes": None, "path": None}, b"", b"nonsense", 3):
        with pytest.raises(PageError):
            to_page_image(value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path / "*.png", "nothing"):
        with pytest.raises(FileNotFoundError, match="nothing"):
            list(list_pages([source]))
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="nothing"):  # before the first page, and not after the last
        next(list_pages([tmp_path, tmp_path / "nothing"]))
    with pytest.raises(ValueError, match="dpi"):
        list(list_pages([tmp_path], dpi=0))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/a\xff.png"
    with open(path, "wb") as file:
        file.write(encoded(0))
    (page,) = list_pages([tmp_path])
    assert page.source.endswith("a\\udcff.png") and same(page, picture(0))


def test_libraries_are_imported_when_they_are_needed(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "from deepencoder.extraction import documents, pages, batches, features, shards, extraction\n"
        f"assert len(list(documents.list_pages([{str(tmp_path)!r}]))) == 1\n"
        "found = {'datasets', 'pyarrow', 'pypdfium2'} & set(sys.modules)\n"
        "assert not found, found\n"
        "sys.modules['pypdfium2'] = None\n"
        f"open({str(tmp_path / 'a.pdf')!r}, 'wb').write(b'%PDF-1.4')\n"
        f"try: list(documents.list_pages([{str(tmp_path)!r}]))\n"
        "except ImportError as error: assert 'deepencoder[pdf]' in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
