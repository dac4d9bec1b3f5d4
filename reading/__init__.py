"""Reading what vision tokens carry: the small model that ships with the package, its head, and pages of text."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .page_text import PageText
    from .reader import PageReader
    from .reading_head import ReadingHead, ReadingHeadConfig
    from .rendering import render_text
    from .shipped import page_reader

__all__ = ["PageReader", "PageText", "ReadingHead", "ReadingHeadConfig", "page_reader", "render_text"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "PageReader": ".reader",
            "PageText": ".page_text",
            "ReadingHead": ".reading_head",
            "ReadingHeadConfig": ".reading_head",
            "page_reader": ".shipped",
            "render_text": ".rendering",
        },
    )
