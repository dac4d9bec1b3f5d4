"""When a document is given up."""

from deepencoder.extraction.containers.pdf import PdfPage
from deepencoder.extraction.failure_streaks import FailureStreaks
from deepencoder.extraction.pages import FailedPage, ImagePage, PageError

BAD = PageError("bad")


def test_a_document_is_given_up_after_failed_pages_in_a_row() -> None:
    streaks, pages = FailureStreaks(3), [PdfPage("a", number, number, "a") for number in range(9)]
    for page, result in zip(pages, (BAD, BAD, None, BAD, BAD), strict=False):
        streaks.note(page, result)
        assert streaks.replace(pages[5]) == pages[5]
    streaks.note(pages[5], BAD)
    reason = "it is not tried, since 3 pages before it failed in a row"
    assert streaks.replace(pages[6]) == FailedPage("a", 6, 6, reason)
    other = PdfPage("b", 0, 9, "b")
    assert streaks.replace(other) == other
    streaks.note(streaks.replace(pages[6]), BAD)
    assert streaks.replace(pages[7]) == FailedPage("a", 7, 7, reason)
    streaks.note(other, None)
    assert streaks.replace(pages[8]) == pages[8]


def test_files_rows_and_members_are_no_documents() -> None:
    streaks = FailureStreaks(1)
    pages = [
        ImagePage("a.png", path="a.png"),
        ImagePage("a.parquet", 3, data=b"x"),
        ImagePage("a.tar::b.png", path="a.tar", offset=512, size=9),
        FailedPage("a.pdf", error="broken"),
    ]
    for page in pages:
        streaks.note(page, BAD)
        assert streaks.replace(page) == page
    frame = ImagePage("a.tif", 1, path="a.tif", frame=1)
    streaks.note(frame, BAD)
    assert streaks.replace(ImagePage("a.tif", 2, path="a.tif", frame=2)).error  # type: ignore[attr-defined]
