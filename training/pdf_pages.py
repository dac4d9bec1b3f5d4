"""Pages of real PDFs, with the place of every character from their text layer.

Unusual: print is set to a size in pixels. Each page is rendered at the scale at which the median font size of its
characters is the one that is asked for, and squares are cut from it, so that all of them can be read.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pypdfium2

from deepencoder.reading.alphabet import clean_text, encode_text

from .corpus import crop_page
from .pages import Page

__all__ = ["pdf_squares", "read_pdf_page"]


def _known(character: str) -> int | None:
    """Return the index of a character in the alphabet, of a space for white space, or None."""
    if character.isspace():
        return encode_text(" ")[0]
    text = clean_text(character)
    return encode_text(text)[0] if len(text) == 1 else None


def _place_spaces(places: np.ndarray, is_space: np.ndarray) -> None:
    """Give spaces that have no glyph the gap between their neighbours, in place; they are not in the file."""
    for n in np.flatnonzero(is_space & (places[:, 2] <= places[:, 0])):
        if 0 < n < len(places) - 1 and places[n + 1, 0] > places[n - 1, 2]:
            places[n] = (places[n - 1, 2], places[n - 1, 1], places[n + 1, 0], places[n - 1, 3])


def _number_lines(boxes: np.ndarray) -> np.ndarray:
    """Number the lines of characters in reading order; a line ends where the next character is elsewhere."""
    middles = (boxes[:, 1] + boxes[:, 3]) / 2
    heights = np.maximum(boxes[:, 3] - boxes[:, 1], 1e-3)
    moves = np.abs(np.diff(middles)) > 0.5 * np.minimum(heights[1:], heights[:-1])
    returns = np.diff(boxes[:, 0]) < -heights[1:]
    return np.concatenate([[0], np.cumsum(moves | returns)])


def read_pdf_page(page: pypdfium2.PdfPage, size: float) -> Page | None:
    """Render a page so that its print is `size` pixels large.

    Returns:
        [`Page`], or None for a page with hardly any text or with many characters that are not in the alphabet.
    """
    textpage = page.get_textpage()
    text = textpage.get_text_range()
    count = textpage.count_chars()
    if count < 200 or len(text) != count:
        return None
    width, height = page.get_size()
    places = np.array([textpage.get_charbox(index, loose=True) for index in range(count)], dtype=np.float32)
    indices = [_known(character) for character in text]
    _place_spaces(places, np.array([character == " " for character in text]))
    unknown = sum(index is None for index in indices)
    # The end of a line is white space without a place of its own.
    kept = [
        n
        for n, (character, index) in enumerate(zip(text, indices, strict=True))
        if index is not None and character not in "\r\n" and places[n, 2] > places[n, 0]
    ]
    if unknown > 0.02 * count or not kept:
        return None
    places = places[kept]
    scale = size / float(np.median(places[:, 3] - places[:, 1]))
    # PDF's y axis points up: (left, bottom, right, top) -> (left, top, right, bottom)
    boxes = np.stack([places[:, 0], height - places[:, 3], places[:, 2], height - places[:, 1]], axis=1) * scale
    image = page.render(scale=scale).to_pil().convert("RGB")
    return Page(image, np.array([indices[n] for n in kept], dtype=np.int64), boxes, _number_lines(boxes))


def pdf_squares(folder: Path, size: float, side: int, pages_per_file: int = 4) -> Iterator[Page]:
    """Cut the squares with most text from a few pages of each PDF: `pages_per_file` of each file in `folder`."""
    for path in sorted(folder.glob("*.pdf")):
        document = pypdfium2.PdfDocument(path)
        # Pages from the middle of the file, without title pages and contents.
        for number in np.linspace(0.25 * len(document), 0.85 * len(document), pages_per_file).astype(int):
            page = read_pdf_page(document[int(number)], size)
            if page is None or min(page.image.size) < side:
                continue
            squares = [
                crop_page(page, left, top, side)
                for top in range(0, page.image.height - side + 1, side)
                for left in range(0, page.image.width - side + 1, side)
            ]
            yield max(squares, key=lambda square: len(square.characters))
