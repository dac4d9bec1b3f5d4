"""Pages whose encoded image is read only if the page is wanted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..limits import MAX_ENCODED_BYTES
from ..pages import FailedPage, ImagePage, Page, PageError, describe_error

__all__ = ["DeferredPage", "EncodedImage", "ListedPages"]


class EncodedImage(NamedTuple):
    """An image as datasets stores it: its encoded bytes, or the path of a file that holds them."""

    data: Any
    path: str | None = None


@dataclass(frozen=True)
class DeferredPage:
    """A page of a table or a stream, before its image is read.

    Args:
        source, page: as for [`Page`].
        read: reads the image. May raise anything, and must be called before the next page is listed.
    """

    source: str
    page: int
    read: Callable[[], EncodedImage]

    def at(self, index: int) -> Page:
        """Read the image and return the page, with its position in the corpus."""
        try:
            image = self.read()
            if image.data is None and image.path is not None:
                return ImagePage(self.source, self.page, index, path=image.path)
            if not isinstance(image.data, bytes) or not image.data:
                raise PageError("there is no image in this row")
            if len(image.data) > MAX_ENCODED_BYTES:
                raise PageError(f"it is larger than {MAX_ENCODED_BYTES:,} bytes")
        except Exception as error:  # each library raises exceptions of its own
            return FailedPage(self.source, self.page, index, error=describe_error(error))
        return ImagePage(self.source, self.page, index, data=image.data)


ListedPages = Iterator[Page | DeferredPage]
