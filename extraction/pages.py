"""One page of a corpus: a small reference that travels between processes, and how it becomes an RGB image.

Unusual: a page that cannot be used is a `PageError` with a reason, whatever Pillow, pdfium or the file system raised.
Pages are untrusted: Pillow's limit on pixels stays on, and holds for what pdfium renders as well.
"""

import atexit
import os
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..processing.images import to_rgb

__all__ = [
    "MAX_ENCODED_BYTES",
    "Page",
    "PageError",
    "describe_error",
    "image_formats",
    "load_page",
    "open_pdf",
    "to_page_image",
]

MAX_ENCODED_BYTES = 1 << 30  # of one image in an archive or a table
POINTS_PER_INCH = 72


class PageError(ValueError):
    """A page that cannot be used. The message is the reason, without the page's name."""


@dataclass(frozen=True)
class Page:
    """Where a page is. Source and page number name it, whatever else is in the corpus.

    Args:
        source (`str`): the file as it was found, `archive.tar::member`, or a dataset's name and split.
        page (`int`): counts from 0: a PDF's page, a TIFF's frame, a table's row, an archive's members of one name.
        index (`int`): position in the whole corpus.
        kind (`str`): `"image"`, `"tiff"`, `"pdf"` or `"failed"`.
        path (`str`, *optional*): the file to read.
        offset, size (`int`): the bytes of that file that are the image; the whole file for a size of 0.
        data (`bytes`, *optional*): the encoded image itself, where its place cannot be reached again.
        dpi (`int`): dots per inch at which a PDF's page is rendered.
        error (`str`): of a failed page, the reason.
    """

    source: str
    page: int = 0
    index: int = 0
    kind: str = "image"
    path: str | None = None
    offset: int = 0
    size: int = 0
    data: bytes | None = None
    dpi: int = 144
    error: str = ""

    def without_data(self) -> "Page":
        return replace(self, data=None)


def load_page(page: Page) -> Image.Image:
    """Decode or render a page.

    Returns:
        `PIL.Image` in RGB.

    Raises:
        `PageError`: it cannot be used; says why.
    """
    try:
        if page.kind == "failed":
            raise PageError(page.error)
        if page.kind == "pdf":
            return _render(page)
        return _decode(page)
    except PageError:
        raise
    except MemoryError as error:
        raise PageError("not enough memory to decode it") from error
    except Exception as error:
        raise PageError(describe_error(error)) from error


def to_page_image(value: Any) -> Image.Image:
    """Turn a cell of an image column into an RGB image.

    Args:
        value: encoded `bytes`, a mapping with `bytes` or `path` as datasets stores images, or whatever
            [`DeepEncoderImageProcessor`] takes for one image.

    Raises:
        `PageError`: it cannot be used; says why.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return load_page(Page("", data=value))
    if value is None:
        raise PageError("there is no image in this row")
    try:
        return to_rgb(value)
    except Exception as error:
        raise PageError(describe_error(error)) from error


def _decode(page: Page) -> Image.Image:
    data = page.data
    if data is None and page.size:
        assert page.path is not None
        with open(page.path, "rb") as file:
            file.seek(page.offset)
            data = file.read(page.size)
    if data is not None and not data:
        raise PageError("it is empty")
    if data is None and not Path(str(page.path)).stat().st_size:
        raise PageError("it is an empty file")
    with Image.open(page.path if data is None else BytesIO(data), formats=image_formats()) as image:  # type: ignore[arg-type]
        if page.kind == "tiff":
            image.seek(page.page)
        if 0 in image.size:
            raise PageError(f"it has {image.width} x {image.height} pixels")
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


@cache
def image_formats() -> list[str]:
    """Name what Pillow decodes itself: no PostScript, which it hands to a program, and none that it only names."""
    Image.init()
    return sorted(Image.OPEN.keys() - {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})


def open_pdf(path: str) -> Any:
    """Open a document with pdfium; the last one stays open.

    Raises:
        `ImportError`: pypdfium2 is missing; names the extra that brings it.
        `PageError`: not a PDF that can be read, and without a password.
    """
    return _open_pdf(path, os.getpid())  # a process that was forked must not share its parent's place in the file


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


@cache
def _import_pdfium() -> Any:
    try:
        import pypdfium2
    except ImportError as error:
        raise ImportError('PDFs need pypdfium2: pip install "deepencoder[pdf]".') from error
    atexit.register(_open_pdf.cache_clear)  # before pdfium itself goes
    return pypdfium2


def _render(page: Page) -> Image.Image:
    document = open_pdf(str(page.path))
    sheet = document[page.page]
    try:
        scale = page.dpi / POINTS_PER_INCH
        width, height = (side * scale for side in sheet.get_size())
        if not (np.isfinite([width, height]).all() and min(width, height) >= 1):
            raise PageError(f"the PDF's page measures {width:.3g} x {height:.3g} pixels at {page.dpi} dpi")
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            raise PageError(
                f"the PDF's page would be {width:.0f} x {height:.0f} pixels at {page.dpi} dpi, more than {limit:,}"
            )
        # Colours as they are: a page without background is white, as on paper.
        return sheet.render(scale=scale).to_pil().convert("RGB")
    finally:
        sheet.close()


def describe_error(error: Exception) -> str:
    """Say in one line, for people, why a page cannot be used."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it is too large to decode safely: {error}"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that Pillow can read"
    if isinstance(error, EOFError):
        return "it ends early, or lacks this page"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("images[0] ") if lines else type(error).__name__
