"""PDFs: broken ones do no harm."""

import os
import signal
from pathlib import Path

import pytest

from deepencoder.extraction.containers import pdf
from deepencoder.extraction.containers.pdf import PdfPage
from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import FailedPage

from ..corpus import write_pdf


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
