"""The members of tar archives."""

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import FailedPage, ImagePage, PageError, load_page

from ..corpus import encoded, picture, same, write_pdf, write_tar


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_are_listed_and_decoded(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), 3, mode)
    pages = list(list_pages([path]))
    assert [page.source for page in pages] == [f"{path}::part/{number:04d}.png" for number in range(3)]
    assert all(same(page, picture(number)) for number, page in enumerate(pages))
    assert [page.data is None for page in pages] == [mode == "w"] * 3  # read from the archive again


def test_a_cut_archive_fails_where_it_ends(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", 3)
    path.write_bytes(path.read_bytes()[:20_000])
    *pages, last = list_pages([path])
    assert pages and same(pages[0], picture(0))
    with pytest.raises(PageError):
        load_page(last)


def test_no_member_is_lost_silently(tmp_path: Path) -> None:
    """A damaged header is reported, members may share a name, and the first member may be a PDF."""
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
    kinds = {os.path.basename(page.source): type(page) for page in list_pages([path])}
    assert kinds == {"a.tar.gz::0.png": ImagePage, "a.tar.gz::1.png": FailedPage, "a.tar.gz": FailedPage}


def write_header(path: Path, kind: bytes, size: int, mode: str) -> Path:
    """Write an archive whose first member is a special header of some size, filled with zeros."""
    member = tarfile.TarInfo("long")
    member.type, member.size = kind, size
    opened: Any = gzip.open if mode == "gz" else open
    with opened(path, "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(write_tar(path.with_name("end.tar"), 1).read_bytes())
    return path


@pytest.mark.parametrize("mode", ["tar", "gz"])
@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
def test_large_headers_are_not_read(tmp_path: Path, kind: bytes, mode: str) -> None:
    path = write_header(tmp_path / f"a.{'tar' if mode == 'tar' else 'tar.gz'}", kind, 32 << 20, mode)
    tracemalloc.start()
    try:
        (page,) = list_pages([path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(page, FailedPage) and "headers" in page.error, page
    print(f"{peak:,} bytes at most")
    assert peak < 16 << 20


def test_many_headers_count_together(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long = tarfile.TarInfo("long")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 18
    with open(path, "wb") as file:
        for _ in range(5):
            file.write(long.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 18))
        file.write(write_tar(tmp_path / "end.tar", 1).read_bytes())
    (page,) = list_pages([path])
    assert isinstance(page, FailedPage) and "headers" in page.error


def test_a_negative_size_ends_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("a.txt")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member.pax_headers = {"size": "-1024"}
        archive.addfile(member)
    (page,) = list_pages([path])
    assert isinstance(page, FailedPage) and "negative" in page.error


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_honest_long_names_are_read(tmp_path: Path, format: int) -> None:
    name = "/".join(["folder" * 20] * 30) + "/a.png"
    for mode in ("w", "w:gz"):
        path = tmp_path / f"{mode[1:].strip(':')}.tar"
        with tarfile.open(path, mode, format=format, pax_headers={"comment": "x"}) as archive:  # type: ignore[call-overload]
            for number in range(2):
                member = tarfile.TarInfo(name)
                member.size = len(encoded(number))
                archive.addfile(member, io.BytesIO(encoded(number)))
        first, second = list_pages([path])
        assert first.source == f"{path}::{name}" and same(first, picture(0)) and same(second, picture(1))
