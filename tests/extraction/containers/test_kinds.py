"""How the kind of a source is recognised."""

from pathlib import Path

from deepencoder.extraction.containers.kinds import HEAD_SIZE, corpus_suffixes, kind_of_file, kind_of_source
from deepencoder.extraction.containers.pdf import PdfPage
from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import ImagePage

from ..corpus import write_parquet, write_pdf, write_pictures, write_tar, write_tiff


def test_files_are_recognised_from_their_content(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", 2).rename(tmp_path / "a.jpg")
    write_tiff(tmp_path / "b.tif", 2).rename(tmp_path / "b.png")
    pages = list(list_pages([tmp_path]))
    assert [type(page) for page in pages] == [PdfPage, PdfPage, ImagePage, ImagePage]
    assert [page.page for page in pages] == [0, 1, 0, 1]


def test_every_kind_is_found_by_one_row(tmp_path: Path) -> None:
    for name, kind in (
        (write_pdf(tmp_path / "a.pdf", 1), "PDF"),
        (write_tiff(tmp_path / "a.tif", 1), "TIFF"),
        (write_parquet(tmp_path / "a.parquet", 1), "parquet file"),
        (write_tar(tmp_path / "a.TGZ", 1, "w:gz"), "tar archive"),
        (write_tar(tmp_path / "no suffix", 1), "tar archive"),
        (write_pictures(tmp_path / "b", 1) / "00000.png", None),
    ):
        found = kind_of_file(str(name), name.read_bytes()[:HEAD_SIZE])
        assert (found.name if found else None) == kind and kind_of_source(str(name)) is None
    assert kind_of_source(str(tmp_path)) is None
    assert {".png", ".tif", ".pdf", ".parquet", ".tar", ".tgz"} <= set(corpus_suffixes())
