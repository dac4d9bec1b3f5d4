"""Pages of print with the place of every character.

Unusual: a page is a function of a seed, the materials and a [`PageStyle`]. All characters of a line have the same
vertical extent, that of the font, so that the centres of a line's characters lie on one line.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deepencoder.reading.alphabet import encode_text

from .materials import Block, Materials, load_font

__all__ = ["Page", "PageStyle", "REGIONS", "draw_page"]

REGIONS = ("blank", "text", "heading", "table", "figure", "code")
"""The kinds of region, at their index."""

KIND_REGIONS = {"paragraph": "text", "item": "text", "heading": "heading", "code": "code", "cell": "table"}
PAPERS = ((255, 255, 255), (255, 255, 255), (252, 250, 244), (245, 240, 226), (238, 238, 238), (235, 242, 248))
INKS = ((0, 0, 0), (0, 0, 0), (20, 20, 20), (50, 50, 60), (30, 30, 90), (90, 20, 20), (90, 90, 90))
ASCENT, DESCENT = 0.78, 0.22
"""Extent of a character above and below its baseline, in units of the font size."""


@dataclass
class Page:
    """A page and the truth about it.

    Attributes:
        image (`PIL.Image`): the page.
        characters (`np.ndarray` of shape `(n,)`): index in [`ALPHABET`] of each character, spaces included, in
            reading order.
        boxes (`np.ndarray` of shape `(n, 4)`): left, top, right and bottom of each character in pixels.
        lines (`np.ndarray` of shape `(n,)`): number of the line of each character.
        regions (`list`): kind and box of each region.
    """

    image: Image.Image
    characters: np.ndarray
    boxes: np.ndarray
    lines: np.ndarray
    regions: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class PageStyle:
    """What pages look like.

    Args:
        width, height: size of the page in pixels.
        sizes: smallest and largest size of body text, in pixels. Sizes are drawn log-uniformly.
        largest_heading: largest heading, as a multiple of the body text's size.
        cut: whether text runs over the page's edges, as in a part that was cut from a larger page.
        varied: whether there are tables, figures, code and headings beside paragraphs.
    """

    width: int
    height: int
    sizes: tuple[float, float] = (14, 40)
    largest_heading: float = 1.8
    cut: bool = True
    varied: bool = True


@dataclass
class _Font:
    """A font, and its size in pixels."""

    font: ImageFont.FreeTypeFont
    size: int

    def measure(self, word: str) -> float:
        return self.font.getlength(word)


class _Typesetter:
    """Draws lines of text onto a page, and notes where each character is."""

    def __init__(self, image: Image.Image, ink: tuple[int, int, int]) -> None:
        self.image, self.draw, self.ink = image, ImageDraw.Draw(image), ink
        self.characters: list[int] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.lines: list[int] = []
        self.line = 0
        self.regions: list[tuple[str, tuple[float, float, float, float]]] = []

    def write_line(self, words: list[str], x: float, baseline: float, font: _Font, space: float) -> float:
        """Draw the words of a line from `x` on, `space` pixels apart; return where the line ends."""
        top, bottom = baseline - ASCENT * font.size, baseline + DESCENT * font.size
        for position, word in enumerate(words):
            if position:
                self._note(" ", x, x + space, top, bottom)
                x += space
            self.draw.text((x, baseline), word, font=font.font, fill=self.ink, anchor="ls")
            length = font.measure(word)
            advances = np.array([font.measure(character) for character in word])
            ends = x + np.concatenate([[0.0], np.cumsum(advances) * (length / max(advances.sum(), 1e-6))])
            for character, left, right in zip(word, ends[:-1], ends[1:], strict=True):
                self._note(character, left, right, top, bottom)
            x += length
        self.line += 1
        return x

    def _note(self, character: str, left: float, right: float, top: float, bottom: float) -> None:
        self.characters.extend(encode_text(character))
        self.boxes.append((left, top, right, bottom))
        self.lines.append(self.line)


def break_lines(text: str, font: _Font, width: float, space: float) -> Iterator[list[str]]:
    """Break a paragraph into lines that are not wider than `width` pixels; words that are wider are cut."""
    line: list[str] = []
    used = 0.0
    for word in text.split():
        length = font.measure(word)
        while length > width and len(word) > 1:
            fitting = max(1, int(len(word) * width / length) - 1)
            if line:
                yield line
                line, used = [], 0.0
            yield [word[:fitting]]
            word = word[fitting:]
            length = font.measure(word)
        if line and used + space + length > width:
            yield line
            line, used = [], 0.0
        used += length + (space if line else 0.0)
        line.append(word)
    if line:
        yield line


@dataclass
class _Column:
    """A column of text that is being filled from the top."""

    left: float
    right: float
    y: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def is_full(self) -> bool:
        return self.y >= self.bottom


class _PageDrawer:
    """Fills one page; the attributes are the choices that hold for the whole page."""

    def __init__(self, seeds: tuple[int, int], materials: Materials, style: PageStyle) -> None:
        self.random, self.texts = map(random.Random, seeds)
        self.materials, self.style = materials, style
        smallest, largest = style.sizes
        self.size = round(smallest * (largest / smallest) ** self.random.random())
        self.leading = self.random.uniform(1.08, 1.55)
        self.body = self._pick_font(self.size)
        self.heading_path = self.random.choice(materials.fonts)
        self.justified = self.random.random() < 0.5
        self.indent = self.random.choice((0.0, 0.0, 1.0, 2.0)) * self.size
        paper, ink = self._pick_colors()
        self.paper = paper
        self.setter = _Typesetter(Image.new("RGB", (style.width, style.height), paper), ink)

    def _pick_colors(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        paper, ink = self.random.choice(PAPERS), self.random.choice(INKS)
        return (ink, paper) if self.random.random() < 0.06 else (paper, ink)

    def _pick_font(self, size: int, is_code: bool = False) -> _Font:
        paths = self.materials.code_fonts if is_code else self.materials.fonts
        return _Font(load_font(self.random.choice(paths), max(size, 5)), max(size, 5))

    def columns(self) -> list[_Column]:
        style, size = self.style, self.size
        if style.cut:
            left, right = self.random.uniform(-6, 2) * size, style.width + self.random.uniform(-2, 6) * size
            top, bottom = self.random.uniform(-1.5, 0.5) * size, style.height + size
        else:
            margin = self.random.uniform(0.03, 0.12) * style.width
            left, right = margin, style.width - margin
            top, bottom = self.random.uniform(0.02, 0.1) * style.height, self.random.uniform(0.9, 0.98) * style.height
        most = max(1, min(3, int((right - left) / (14 * size))))
        count = self.random.randint(1, most)
        gap = self.random.uniform(1.2, 2.5) * size
        width = (right - left - gap * (count - 1)) / count
        starts = [left + index * (width + gap) for index in range(count)]
        return [_Column(start, start + width, top, bottom) for start in starts]

    def fill(self, column: _Column) -> None:
        for block in self.materials.passage(self.texts):
            if column.is_full:
                return
            top = column.y
            chance = self.random.random()
            if self.style.varied and chance < 0.04:
                kind = self.draw_figure(column)
            elif self.style.varied and chance < 0.10:
                kind = self.draw_table(column)
            else:
                kind = self.draw_block(column, block)
            self.setter.regions.append((kind, (column.left, top, column.right, column.y)))
            column.y += self.random.uniform(0.1, 1.2) * self.size

    def draw_block(self, column: _Column, block: Block) -> str:
        kind = block.kind if self.style.varied else "paragraph"
        if kind == "code":
            self._draw_code(column, block.text)
        elif kind == "heading":
            size = round(self.size * self.random.uniform(1.1, self.style.largest_heading))
            self._draw_paragraph(column, block.text, _Font(load_font(self.heading_path, size), size), 0.0)
        elif kind == "item":
            mark = self.random.choice(("•", "-", "*", f"{self.random.randint(1, 30)}."))
            self._draw_paragraph(column, f"{mark} {block.text}", self.body, self.size)
        else:
            self._draw_paragraph(column, block.text.replace("\n", " "), self.body, self.indent)
        return KIND_REGIONS[kind]

    def _draw_paragraph(self, column: _Column, text: str, font: _Font, indent: float) -> None:
        space = font.measure(" ")
        width = column.width - indent
        lines = list(break_lines(text, font, max(width, 2 * font.size), space))
        for number, words in enumerate(lines):
            if column.is_full:
                return
            gap = space
            if self.justified and number + 1 < len(lines) and len(words) > 2:
                slack = width - sum(map(font.measure, words)) - space * (len(words) - 1)
                gap += min(max(slack, 0.0) / (len(words) - 1), 1.5 * space)
            column.y += self.leading * font.size
            baseline = column.y - DESCENT * font.size
            self.setter.write_line(words, column.left + indent, baseline, font, gap)

    def _draw_code(self, column: _Column, text: str) -> None:
        font = self._pick_font(max(6, round(self.size * self.random.uniform(0.8, 1.0))), is_code=True)
        space = font.measure(" ")
        for line in text.split("\n"):
            if column.is_full:
                return
            words = next(break_lines(line, font, max(column.width, 2 * font.size), space), None)
            if words:
                column.y += 1.2 * font.size
                self.setter.write_line(words, column.left, column.y - DESCENT * font.size, font, space)

    def draw_table(self, column: _Column) -> str:
        cells = [block.text.split("\n")[0] for block in _take(self.materials.passage(self.texts), 24)]
        count = self.random.randint(2, 4)
        width = column.width / count
        font, ruled = self.body, self.random.random() < 0.6
        space, top = font.measure(" "), column.y
        for row in range(self.random.randint(2, 6)):
            if column.is_full:
                break
            column.y += 1.5 * font.size
            for index in range(count):
                text = cells[(row * count + index) % len(cells)]
                words = next(break_lines(text, font, max(width - font.size, font.size), space), None)
                if words:
                    x = column.left + index * width + 0.3 * font.size
                    self.setter.write_line(words, x, column.y - 0.35 * font.size, font, space)
            if ruled:
                self.setter.draw.line([(column.left, column.y), (column.right, column.y)], fill=self.setter.ink)
        if ruled:
            for index in range(count + 1):
                x = column.left + index * width
                self.setter.draw.line([(x, top), (x, column.y)], fill=self.setter.ink)
        return "table"

    def draw_figure(self, column: _Column) -> str:
        height = self.random.uniform(2, 8) * self.size
        box = (column.left, column.y + 0.3 * self.size, column.right, column.y + height)
        draw, shade = self.setter.draw, self.random.randrange
        draw.rectangle(box, fill=(shade(150, 256), shade(150, 256), shade(150, 256)), outline=self.setter.ink)
        for _ in range(self.random.randint(2, 10)):
            xs = sorted(self.random.uniform(box[0], box[2]) for _ in range(2))
            ys = sorted(self.random.uniform(box[1], box[3]) for _ in range(2))
            color = (shade(256), shade(256), shade(256))
            shape = self.random.choice((draw.ellipse, draw.rectangle, draw.line))
            shape((xs[0], ys[0], xs[1] + 1, ys[1] + 1), fill=color)
        column.y += height
        return "figure"


def _take(blocks: Iterator[Block], count: int) -> list[Block]:
    return [block for block, _ in zip(blocks, range(count), strict=False)]


def draw_page(seed: int, materials: Materials, style: PageStyle, text_seed: int | None = None) -> Page:
    """Draw a page.

    Args:
        seed: the same seed gives the same page.
        materials: fonts and texts.
        style: size and look of the page.
        text_seed: chooses the text, by default `seed`. Pages with one text seed show the same text in other fonts,
            sizes and columns.

    Returns:
        [`Page`], with the characters whose centres lie on it.
    """
    drawer = _PageDrawer((seed, seed if text_seed is None else text_seed), materials, style)
    for column in drawer.columns():
        drawer.fill(column)
    setter = drawer.setter
    boxes = np.array(setter.boxes, dtype=np.float32).reshape(-1, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centers >= 0) & (centers < (style.width, style.height))).all(axis=1)
    characters = np.array(setter.characters, dtype=np.int64)[inside]
    return Page(
        setter.image, characters, boxes[inside], np.array(setter.lines, dtype=np.int64)[inside], setter.regions
    )
