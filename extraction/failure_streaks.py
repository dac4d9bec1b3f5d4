"""Documents of which too many pages in a row fail: the rest of them is not tried.

Unusual: a file of 200 bytes may claim any number of pages, and each may take as long as the time limit allows. Pages
that are not tried fail, too, so that they are listed with the others and `--retry-failed` tries them again.
"""

from typing import Any

from .limits import GIVE_UP_AFTER
from .pages import FailedPage, Page, PageError

__all__ = ["FailureStreaks"]


class FailureStreaks:
    """Counts failed pages in a row of one document, as results come in the order of the pages.

    Args:
        limit: number of failed pages after which a document is given up.
    """

    def __init__(self, limit: int = GIVE_UP_AFTER) -> None:
        self.limit = limit
        self._document: str | None = None
        self._failed = 0

    def note(self, page: Page, result: Any) -> None:
        """Take notice of a page's result, which is a [`PageError`] if it failed."""
        if page.document is None:
            return
        if page.document != self._document:
            self._document, self._failed = page.document, 0
        self._failed = self._failed + 1 if isinstance(result, PageError) else 0

    def replace(self, page: Page) -> Page:
        """Return the page, or a failed one in its place if its document is given up."""
        if self._failed < self.limit or page.document is None or page.document != self._document:
            return page
        reason = f"it is not tried, since {self.limit} pages before it failed in a row"
        return FailedPage(page.source, page.page, page.index, error=reason)
