"""PDFs: broken ones do no harm."""

import os
import signal
import time
from pathlib import Path

import pytest

from deepencoder.extraction.containers import pdf
from deepencoder.extraction.containers.pdf import PdfPage
from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import FailedPage

from ..corpus import write_endless_pdf, write_pdf


def test_a_pdf_that_crashes_its_reader_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write_pdf(tmp_path / f"{name}.pdf", 1)
    count_pages = pdf.count_pages

    def crash(path: str) -> int:
        if path.endswith("b.pdf"):
            os.kill(os.getpid(), signal.SIGKILL)
        return count_pages(path)

    monkeypatch.setattr(pdf, "count_pages", crash)
    pages = list(list_pages([tmp_path]))
    assert [type(page) for page in pages] == [PdfPage, FailedPage, PdfPage]
    assert isinstance(pages[1], FailedPage)
    assert "the PDF cannot be read: its process died of signal 9" in pages[1].error


def test_a_pdf_that_claims_any_number_of_pages_is_cut(tmp_path: Path) -> None:
    path = write_endless_pdf(tmp_path / "a.pdf")
    assert path.stat().st_size < 200
    *pages, last = list_pages([path], max_pages=20)
    assert [page.page for page in pages] == list(range(20)) and all(isinstance(page, PdfPage) for page in pages)
    assert last == FailedPage(str(path), 20, 20, "it and those after it are not read, as the limit is 20 pages")
    assert sum(1 for _ in list_pages([path])) == 10_001
    assert len(list(list_pages([write_pdf(tmp_path / "b.pdf", 3)], max_pages=3))) == 3
    with pytest.raises(ValueError, match="max_pages must be positive"):
        list(list_pages([path], max_pages=0))


def test_a_stop_interrupts_a_reader_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, start = write_pdf(tmp_path / "a.pdf", 1), time.monotonic()
    monkeypatch.setattr(pdf, "count_pages", lambda path: time.sleep(600))
    (page,) = list_pages([path], stop=lambda: time.monotonic() > start + 0.3)
    assert isinstance(page, FailedPage) and "interrupted" in page.error
    assert time.monotonic() < start + 2
