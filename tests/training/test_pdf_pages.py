from pathlib import Path

import numpy as np
import pypdfium2
import pytest

from deepencoder.reading.alphabet import ALPHABET
from training.pages import Page
from training.pdf_pages import pdf_squares, read_pdf_page

LINES = [f"Line {number}: the quick brown fox jumps over it." for number in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a PDF of one page, of Helvetica of 20 points."""
    shown = "".join(f"({line}) Tj 0 -30 Td " for line in LINES)
    content = f"BT /F1 20 Tf 40 700 Td {shown}ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    file, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj%s endobj\n" % (number, text)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    file += b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(file),
    )
    path = tmp_path_factory.mktemp("pdfs")
    (path / "one.pdf").write_bytes(file)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    page = read_pdf_page(pypdfium2.PdfDocument(folder / "one.pdf")[0], 24)
    assert page is not None
    return page


def test_the_text_layer_is_the_text(page: Page) -> None:
    lines = [page.characters[page.lines == line] for line in np.unique(page.lines)]
    assert ["".join(ALPHABET[index] for index in line).strip() for line in lines] == LINES


def test_boxes_hold_the_ink(page: Page) -> None:
    dark = np.asarray(page.image.convert("L")) < 128
    covered = np.zeros_like(dark)
    for left, top, right, bottom in page.boxes.round().astype(int):
        covered[top - 1 : bottom + 1, left - 1 : right + 1] = True
    assert dark.any() and not (dark & ~covered).any()


def test_print_has_the_size_that_is_asked_for(page: Page) -> None:
    assert np.median(page.boxes[:, 3] - page.boxes[:, 1]) == pytest.approx(24, abs=0.5)


def test_the_square_with_most_text_is_cut(folder: Path) -> None:
    (square,) = pdf_squares(folder, 24, 256, pages_per_file=1)
    assert square.image.size == (256, 256) and len(square.characters) > 80
    assert (square.boxes[:, 2] > 0).all() and (square.boxes[:, 0] < 256).all()


def test_a_page_with_hardly_any_text_is_left_out() -> None:
    document = pypdfium2.PdfDocument.new()
    assert read_pdf_page(document.new_page(200, 200), 20) is None
