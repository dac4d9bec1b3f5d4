"""How a page becomes an image, and why some pages do not."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import ImagePage, PageError, load_page, to_page_image

from .corpus import encoded, picture, write_bad_pages, write_pdf, write_pictures


def test_orientation_and_depth_are_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.full((3, 4), 0x80FF, np.uint16)).save(tmp_path / "b.png")
    turned, deep = (load_page(page) for page in list_pages([tmp_path]))
    assert turned.size == (120, 90) and deep.getpixel((0, 0)) == (0x80, 0x80, 0x80)


def test_bad_pages_report_a_reason_in_one_line(tmp_path: Path) -> None:
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


def test_no_external_program_decodes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript for PostScript, whatever the name of the file."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: picture(0).im)
    (page,) = list_pages([tmp_path])
    with pytest.raises(PageError, match="not an image"):
        load_page(page)


def test_cells_of_an_image_column() -> None:
    expected = np.asarray(picture(0))
    for value in (picture(0), encoded(0), {"bytes": encoded(0), "path": None}, expected):
        assert np.array_equal(np.asarray(to_page_image(value)), expected)
    for value in (None, {"bytes": None, "path": None}, b"", b"nonsense", 3):
        with pytest.raises(PageError):
            to_page_image(value)


def test_cells_name_only_files_below_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote a table must not choose which of the reader's files are opened."""
    folder, fetched = write_pictures(tmp_path / "pages", 1), []
    picture(1).save(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "00000.png")
    (tmp_path / "pages2").symlink_to(tmp_path)
    inside = ["00000.png", folder / "00000.png", "inside.png", {"bytes": None, "path": "../pages/00000.png"}]
    for value in inside:
        assert np.array_equal(np.asarray(to_page_image(value, image_folder=folder)), np.asarray(picture(0)))
        with pytest.raises(PageError, match="its row names a file, .*image_folder"):
            to_page_image(value)
    outside = [tmp_path / "secret.png", "../secret.png", "link.png", "../pages2/secret.png", "/etc/passwd", ".."]
    for value in outside:
        with pytest.raises(PageError, match="its row names a file outside of .*pages, which is not opened"):
            to_page_image({"bytes": None, "path": str(value)}, image_folder=folder)
    for name, reason in (("pipe.png", "not a regular file"), (".", "not a regular file"), ("no.png", "No such file")):
        with pytest.raises(PageError, match=reason):
            to_page_image(name, image_folder=folder)

    url = "https://example.invalid/a.png"
    monkeypatch.setattr("deepencoder.processing.images.download", lambda name: fetched.append(name) or encoded(2))
    with pytest.raises(PageError, match="its row holds a URL, .*allow_urls"):
        to_page_image({"bytes": None, "path": url}, image_folder=folder)
    assert not fetched
    assert to_page_image(url, allow_urls=True).size == (90, 120) and fetched == [url]


def test_references_are_small(tmp_path: Path) -> None:
    write_bad_pages(tmp_path / "bad")
    for page in list_pages([write_pictures(tmp_path / "a", 1), write_pdf(tmp_path / "a.pdf", 1), tmp_path / "bad"]):
        content = pickle.dumps(page)
        assert pickle.loads(content) == page and len(content) < 500
    page = ImagePage("a", data=encoded(0))
    assert page.without_data() == ImagePage("a") and page.at(3) == ImagePage("a", index=3, data=encoded(0))
