"""A page of a corpus: a small reference that travels between processes, and how it becomes an RGB image.

Unusual: whatever Pillow, pdfium or the file system raise for a page that cannot be used becomes a `PageError` with a
one-line reason. Pages are untrusted input: Pillow's limit on the number of pixels stays on, and applies to rendered
PDF pages as well.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from ..processing.images import image_formats, to_rgb, turn_upright

__all__ = [
    "FailedPage",
    "ImagePage",
    "Page",
    "PageError",
    "cut_document",
    "describe_error",
    "find_below",
    "image_suffixes",
    "load_page",
    "to_page_image",
]

SomePage = TypeVar("SomePage", bound="Page")


class PageError(ValueError):
    """A page cannot be used. The message is the reason and does not repeat the page's name."""


def describe_error(error: Exception) -> str:
    """Describe in one readable line why a page cannot be used."""
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


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the file suffixes of [`image_formats`], in lower case."""
    formats = image_formats()
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@dataclass(frozen=True)
class Page:
    """A reference to one page. Its source and page number identify it, independent of the rest of the corpus.

    Each kind of page is a subclass that knows how to read its image. Pages are pickled and sent to other processes,
    so subclasses hold plain values only.

    Args:
        source (`str`): path of the file, `archive.tar::member`, or name and split of a dataset.
        page (`int`): number within the source, from 0: the page of a PDF, the frame of a TIFF, the row of a table, or
            the position among archive members of the same name.
        index (`int`): position in the whole corpus.
    """

    source: str
    page: int = 0
    index: int = 0

    def at(self: SomePage, index: int) -> SomePage:
        """Return this page with its position in the corpus."""
        return replace(self, index=index)

    @property
    def document(self) -> str | None:
        """The file that claims to hold this page among others, such as a PDF; None for a page of any other source."""
        return None

    @property
    def encoded_bytes(self) -> int:
        """Number of bytes of encoded image data that the page carries."""
        return 0

    def without_data(self: SomePage) -> SomePage:
        """Return this page without encoded image data, to send it back cheaply."""
        return self

    def read_image(self) -> Image.Image:
        """Decode or render the page as RGB. May raise anything; callers use [`load_page`]."""
        raise NotImplementedError


@dataclass(frozen=True)
class FailedPage(Page):
    """A page, or a whole source, that could not be listed.

    Args:
        error (`str`): the reason.
    """

    error: str = ""

    def read_image(self) -> Image.Image:
        raise PageError(self.error)


@dataclass(frozen=True)
class ImagePage(Page):
    """A page that Pillow decodes, from a file, from part of a file or from memory.

    Args:
        path (`str`, *optional*): the file to read.
        offset, size (`int`): the bytes of that file that hold the image. A size of 0 means the whole file.
        data (`bytes`, *optional*): the encoded image itself, used where it cannot be read from a file again.
        frame (`int`): frame of an image with several frames.
    """

    path: str | None = None
    offset: int = 0
    size: int = 0
    data: bytes | None = None
    frame: int = 0

    @property
    def document(self) -> str | None:
        return self.path if self.frame else None

    @property
    def encoded_bytes(self) -> int:
        return len(self.data or b"")

    def without_data(self) -> "ImagePage":
        return replace(self, data=None)

    def read_image(self) -> Image.Image:
        with Image.open(self._open_encoded(), formats=image_formats()) as image:
            if self.frame:
                image.seek(self.frame)
            if 0 in image.size:
                raise PageError(f"it has {image.width} x {image.height} pixels")
            image.load()
            return to_rgb(turn_upright(image))

    def _open_encoded(self) -> str | BytesIO:
        """Return what Pillow opens: the file's path, or the encoded image in memory."""
        data = self.data
        if data is None:
            assert self.path is not None
            if not self.size:
                if not Path(self.path).stat().st_size:
                    raise PageError("it is an empty file")
                return self.path
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        if not data:
            raise PageError("it is empty")
        return BytesIO(data)


def cut_document(path: str, pages: Iterator[SomePage], max_pages: int) -> Iterator[SomePage | FailedPage]:
    """Yield the first pages of a document, and if there are more, a [`FailedPage`] that says so."""
    yield from islice(pages, max_pages)
    if next(pages, None) is not None:
        yield FailedPage(
            path, max_pages, error=f"it and those after it are not read, as the limit is {max_pages:,} pages"
        )


def load_page(page: Page) -> Image.Image:
    """Decode or render a page.

    Returns:
        `PIL.Image` in RGB.

    Raises:
        `PageError`: the page cannot be used; the message gives the reason.
    """
    try:
        return page.read_image()
    except PageError:
        raise
    except MemoryError as error:
        raise PageError("not enough memory to decode it") from error
    except Exception as error:
        raise PageError(describe_error(error)) from error


def find_below(folder: str | os.PathLike[str], path: str) -> str:
    """Return the file that a row of a table names, if it is a regular file below a folder, with all links resolved.

    Whoever wrote the table chose the path, which might name a private file of the reader, or a pipe.

    Args:
        folder: the folder.
        path (`str`): the path, absolute or relative to the folder.

    Raises:
        `PageError`: the path leads out of the folder, or to something else than a file.
    """
    root = os.path.realpath(folder)
    found = os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([root, found]) != root:
        raise PageError(f"its row names a file outside of {os.fspath(folder)}, which is not opened")
    if not stat.S_ISREG(os.stat(found).st_mode):
        raise PageError("it is not a regular file")
    return found


def to_page_image(
    value: Any, *, image_folder: str | os.PathLike[str] | None = None, allow_urls: bool = False
) -> Image.Image:
    """Turn a cell of an image column into an RGB image.

    Args:
        value: encoded `bytes`, a mapping with `bytes` or `path` (the way datasets stores images), or anything that
            [`DeepEncoderImageProcessor`] accepts as one image.
        image_folder (*optional*): folder below which the files lie that cells may name. Default: none may be named.
        allow_urls (`bool`, defaults to `False`): whether URLs in cells are fetched.

    Raises:
        `PageError`: the value cannot be used; the message gives the reason.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise PageError("there is no image in this row")
    try:
        if isinstance(value, bytes):
            return load_page(ImagePage("", data=value))
        if isinstance(value, (str, os.PathLike)):
            value = _check_name(os.fspath(value), image_folder, allow_urls)
        return to_rgb(value)
    except PageError:
        raise
    except Exception as error:
        raise PageError(describe_error(error)) from error


def _check_name(name: str, image_folder: str | os.PathLike[str] | None, allow_urls: bool) -> str:
    """Return the name of an image that may be opened because of a row of a table, or raise a `PageError`."""
    if name.startswith("data:image/"):  # the image itself
        return name
    if name.startswith(("http://", "https://")):
        if not allow_urls:
            raise PageError("its row holds a URL, which is fetched with allow_urls=True only")
        return name
    if image_folder is None:
        raise PageError("its row names a file, which is opened only below a folder passed as image_folder")
    return find_below(image_folder, name)
