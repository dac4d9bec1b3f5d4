"""Text as page images: what one would print, for encoders that read pages.

Unusual: the default font is the one that Pillow contains, so the same text gives the same pixels wherever that version
of Pillow is. Lines are broken at spaces, and words that are wider than a line anywhere.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["RenderedPage", "render_text"]

MAX_SIDE = 8192
"""Largest side of a page in pixels."""
MAX_PIXELS = 2**28
"""Largest number of pixels of all pages of a text, which then take 0.8 GB."""


@dataclass(frozen=True)
class RenderedPage:
    """A page of text.

    Args:
        image (`PIL.Image.Image`): the page.
        text (`str`): what is printed on it, a line of text for each line of print.
    """

    image: Image.Image
    text: str


def _load_font(font: str | os.PathLike[str] | None, size: int) -> ImageFont.FreeTypeFont:
    try:
        found = ImageFont.load_default(size) if font is None else ImageFont.truetype(os.fspath(font), size)
    except OSError as error:
        raise ValueError(f"font {os.fspath(font or 'default')!r} cannot be loaded: {error}") from error
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise ValueError("font must be given: this Pillow was built without FreeType, and has no font of any size.")
    return found


def _break_lines(text: str, font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    """Yield the lines of a text; an empty one for each empty line."""
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while len(word) > width or (len(word) > 1 and font.getlength(word) > width):
                if line:
                    yield line
                fitting = _count_fitting(word, font, width)
                yield word[:fitting]
                line, word = "", word[fitting:]
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                yield line
                longer = word
            line = longer
        yield line


def _count_fitting(word: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """Return how many characters of a word fit into a line: at least one, and at most one for each pixel."""
    most = min(len(word) - 1, int(width))
    return max(1, bisect_right(range(1, most + 1), width, key=lambda count: font.getlength(word[:count])))


def render_text(
    text: str,
    size: tuple[int, int] = (640, 640),
    font_size: int = 20,
    font: str | os.PathLike[str] | None = None,
    margin: int | None = None,
    line_spacing: float = 1.25,
) -> list[RenderedPage]:
    """Print a text on as many pages as it needs, black on white.

    Args:
        text (`str`): the text. A newline begins a new line of print.
        size (`tuple[int, int]`, defaults to `(640, 640)`): height and width of a page in pixels.
        font_size (`int`, defaults to 20): size of the print in pixels.
        font (`str` or `Path`, *optional*): a TrueType or OpenType file; by default the font in Pillow.
        margin (`int`, *optional*): white on each side of the print in pixels, by default the size of the print.
        line_spacing (`float`, defaults to 1.25): distance of lines in units of `font_size`.

    Returns:
        a list of [`RenderedPage`]. A text without any characters gives one white page.

    Raises:
        `ValueError`: a page has no room for a line or more than 8192 pixels a side, the text needs pages of
            more than 2**28 pixels in all, or the font cannot be loaded.
    """
    height, width = size
    margin = font_size if margin is None else margin
    if not all(0 < side <= MAX_SIDE for side in size):
        raise ValueError(f"size must be a height and a width of 1 to {MAX_SIDE} pixels, got {size}.")
    if font_size < 1 or margin < 0 or not 0.5 <= line_spacing <= 10:
        raise ValueError(
            f"font_size must be positive, margin not negative and line_spacing at least 0.5 and at most 10, got "
            f"{font_size}, {margin} and {line_spacing}."
        )
    spacing = line_spacing * font_size
    lines_on_page = int((height - 2 * margin - font_size) / spacing) + 1 if height >= 2 * margin + font_size else 0
    if lines_on_page < 1 or width <= 2 * margin:
        raise ValueError(f"size {size} leaves no room for a line of font_size {font_size} with a margin of {margin}.")
    loaded = _load_font(font, font_size)
    pages, lines = [], []
    for line in _break_lines(text, loaded, width - 2 * margin):
        lines.append(line)
        if len(lines) == lines_on_page:
            pages.append(lines)
            lines = []
        if len(pages) * height * width > MAX_PIXELS:
            raise ValueError(f"text needs {len(pages)} pages or more of {width} x {height} pixels, which is too much.")
    if lines or not pages:
        pages.append(lines)
    return [_print_page(page, loaded, size, margin, spacing) for page in pages]


def _print_page(
    lines: list[str], font: ImageFont.FreeTypeFont, size: tuple[int, int], margin: int, spacing: float
) -> RenderedPage:
    image = Image.new("RGB", (size[1], size[0]), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((margin, margin + number * spacing), line, font=font, fill="black")
    return RenderedPage(image, "\n".join(lines))
