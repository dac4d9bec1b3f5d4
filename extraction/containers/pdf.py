"""PDFs, which pdfium opens and renders.

Unusual: pages are counted in a separate process, because a broken file may crash or hang pdfium.
"""

import atexit
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import Image

from ..limits import MAX_PAGES_PER_DOCUMENT, PAGE_MEMORY, PAGE_TIMEOUT
from ..pages import FailedPage, Page, PageError, cut_document, describe_error
from ..workers import DiedError, Worker
from .deferred import ListedPages

__all__ = ["PdfPage", "count_pages", "list_pdf", "open_pdf"]

POINTS_PER_INCH = 72


@cache
def _import_pdfium() -> Any:
    try:
        import pypdfium2
    except ImportError as error:
        raise ImportError('PDFs need pypdfium2: pip install "deepencoder[pdf]".') from error
    atexit.register(_open_pdf.cache_clear)  # documents must be closed before pdfium is unloaded
    return pypdfium2


@lru_cache(maxsize=1)
def _open_pdf(path: str, process: int) -> Any:
    pypdfium2 = _import_pdfium()
    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        message = str(error)
        if "password" in message.lower():
            raise PageError("the PDF is encrypted, and needs a password") from error
        raise PageError(f"the PDF cannot be read: {message}") from error
    except OSError as error:
        raise PageError(f"the PDF cannot be read: {describe_error(error)}") from error


def open_pdf(path: str) -> Any:
    """Open a document with pdfium. The last document stays open, as its pages are usually read one after another.

    Raises:
        `ImportError`: pypdfium2 is missing; the message names the extra that installs it.
        `PageError`: the file is not a readable PDF, or needs a password.
    """
    return _open_pdf(path, os.getpid())  # a forked process must not share the file position of its parent


def count_pages(path: str) -> int:
    """Return the number of pages of a PDF. Raises what [`open_pdf`] raises."""
    return len(open_pdf(path))


@dataclass(frozen=True)
class PdfPage(Page):
    """A page of a PDF.

    Args:
        path (`str`): the file.
        dpi (`int`): resolution at which the page is rendered, in dots per inch.
    """

    path: str = ""
    dpi: int = 144

    @property
    def document(self) -> str:
        return self.path

    def read_image(self) -> Image.Image:
        sheet = open_pdf(self.path)[self.page]
        try:
            scale = self.dpi / POINTS_PER_INCH
            width, height = (side * scale for side in sheet.get_size())
            if not (np.isfinite([width, height]).all() and min(width, height) >= 1):
                raise PageError(f"the PDF's page measures {width:.3g} x {height:.3g} pixels at {self.dpi} dpi")
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and width * height > limit:
                size = f"{width:.0f} x {height:.0f}"
                raise PageError(f"the PDF's page would be {size} pixels at {self.dpi} dpi, more than {limit:,}")
            # A page without a background is white, like paper; all other colours are kept.
            return sheet.render(scale=scale).to_pil().convert("RGB")
        finally:
            sheet.close()


def _may_fork() -> bool:
    """Whether a new process is cheap, does not import the main module again, and may be started from here."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork" and not multiprocessing.current_process().daemon


@lru_cache(maxsize=1)
def _counting_worker(count: Callable[[str], int], process: int) -> Worker[str, int]:
    """Return the worker process that counts pages. It is kept from PDF to PDF, but not inherited by forks."""
    return Worker(count, PAGE_TIMEOUT, PAGE_MEMORY)


def list_pdf(
    path: str, dpi: int, max_pages: int = MAX_PAGES_PER_DOCUMENT, stop: Callable[[], bool] | None = None
) -> ListedPages:
    """List the pages of a PDF.

    Args:
        path (`str`): the file.
        dpi (`int`): as for [`PdfPage`].
        max_pages (`int`): how many pages to list at most.
        stop (*optional*): asked while pdfium counts the pages; once it returns True, the PDF fails.
    """
    try:
        count = _counting_worker(count_pages, os.getpid())(path, stop) if _may_fork() else count_pages(path)
        if not count:
            raise PageError("the PDF has no pages")
    except PageError as error:
        yield FailedPage(path, error=str(error))
        return
    except (DiedError, MemoryError) as error:
        yield FailedPage(path, error=f"the PDF cannot be read: {describe_error(error)}")
        return
    yield from cut_document(path, (PdfPage(path, number, path=path, dpi=dpi) for number in range(count)), max_pages)
