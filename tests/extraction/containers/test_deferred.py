"""Pages that are read only if they are wanted."""

from typing import Any

import pytest

from deepencoder.extraction.containers.deferred import DeferredPage, EncodedImage
from deepencoder.extraction.pages import FailedPage, ImagePage

from ..corpus import encoded


@pytest.mark.parametrize(
    "image, expected",
    [
        (EncodedImage(encoded(0)), ImagePage("a", 1, 2, data=encoded(0))),
        (EncodedImage(None, "a.png"), ImagePage("a", 1, 2, path="a.png")),
        (EncodedImage(encoded(0), "a.png"), ImagePage("a", 1, 2, data=encoded(0))),
        (EncodedImage(None), FailedPage("a", 1, 2, error="there is no image in this row")),
        (EncodedImage(b""), FailedPage("a", 1, 2, error="there is no image in this row")),
        (EncodedImage("text"), FailedPage("a", 1, 2, error="there is no image in this row")),
    ],
)
def test_what_is_read_becomes_a_page(image: EncodedImage, expected: Any) -> None:
    assert DeferredPage("a", 1, lambda: image).at(2) == expected


def test_errors_become_failed_pages() -> None:
    def fail() -> EncodedImage:
        raise EOFError

    assert DeferredPage("a", 0, fail).at(0) == FailedPage("a", error="it ends early, or lacks this page")
