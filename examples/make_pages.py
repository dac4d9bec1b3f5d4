"""Makes the example pages: dense text, a table and a two-column layout, A4 at 150 dpi.

The words are from Herman Melville's *Moby-Dick* (1851), which is in the public domain; the figures are facts.
Run it as `python examples/make_pages.py`; the same Pillow gives the same files.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PAGE = (1240, 1754)  # pixels: A4 at 150 dpi
MARGIN = 120
INK, PAPER, RULE = (25, 25, 30), (255, 255, 255), (150, 150, 155)

TEXT = """\
Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse, and \
nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the \
world. It is a way I have of driving off the spleen and regulating the circulation. Whenever I find myself \
growing grim about the mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself \
involuntarily pausing before coffin warehouses, and bringing up the rear of every funeral I meet; and especially \
whenever my hypos get such an upper hand of me, that it requires a strong moral principle to prevent me from \
deliberately stepping into the street, and methodically knocking people’s hats off - then, I account it high \
time to get to sea as soon as I can.

This is my substitute for pistol and ball. With a philosophical flourish Cato throws himself upon his sword; I \
quietly take to the ship. There is nothing surprising in this. If they but knew it, almost all men in their \
degree, some time or other, cherish very nearly the same feelings towards the ocean with me.

There now is your insular city of the Manhattoes, belted round by wharves as Indian isles by coral reefs - \
commerce surrounds it with her surf. Right and left, the streets take you waterward. Its extreme downtown is the \
battery, where that noble mole is washed by waves, and cooled by breezes, which a few hours previous were out of \
sight of land. Look at the crowds of water-gazers there.

Circumambulate the city of a dreamy Sabbath afternoon. Go from Corlears Hook to Coenties Slip, and from thence, \
by Whitehall, northward. What do you see? - Posted like silent sentinels all around the town, stand thousands \
upon thousands of mortal men fixed in ocean reveries. Some leaning against the spiles; some seated upon the \
pier-heads; some looking over the bulwarks of ships from China; some high aloft in the rigging, as if striving \
to get a still better seaward peep. But these are all landsmen; of week days pent up in lath and plaster - tied \
to counters, nailed to benches, clinched to desks. How then is this? Are the green fields gone? What do they \
here?"""

TABLE = [
    ("Planet", "Radius (km)", "Distance (AU)", "Year (d)", "Day (h)", "Moons"),
    ("Mercury", "2,440", "0.387", "88.0", "4,222.6", "0"),
    ("Venus", "6,052", "0.723", "224.7", "2,802.0", "0"),
    ("Earth", "6,371", "1.000", "365.2", "24.0", "1"),
    ("Mars", "3,390", "1.524", "687.0", "24.7", "2"),
    ("Jupiter", "69,911", "5.203", "4,331", "9.9", "95"),
    ("Saturn", "58,232", "9.537", "10,747", "10.7", "146"),
    ("Uranus", "25,362", "19.191", "30,589", "17.2", "28"),
    ("Neptune", "24,622", "30.069", "59,800", "16.1", "16"),
]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def new_page(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", PAGE, PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, 90), title, font=font(44), fill=INK)
    draw.line([(MARGIN, 160), (PAGE[0] - MARGIN, 160)], fill=RULE, width=2)
    return page, draw


def wrap(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> list[str]:
    """Break text into lines of at most `width` pixels; an empty line separates paragraphs."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if draw.textlength(longer, font=font(size)) <= width:
                line = longer
            else:
                lines.append(line)
                line = word
        lines += [line, ""]
    return lines


def write(draw: ImageDraw.ImageDraw, lines: list[str], left: int, top: int, bottom: int, size: int) -> list[str]:
    """Write lines from `top` down to `bottom`, and return the lines for which there was no room."""
    step = round(size * 1.4)
    room = (bottom - top) // step
    for index, line in enumerate(lines[:room]):
        draw.text((left, top + index * step), line, font=font(size), fill=INK)
    return lines[room:]


def dense_text() -> Image.Image:
    page, draw = new_page("Chapter 1. Loomings.")
    lines = wrap(draw, f"{TEXT}\n\n{TEXT}", PAGE[0] - 2 * MARGIN, 21)
    write(draw, lines, MARGIN, 200, PAGE[1] - MARGIN, 21)
    return page


def two_columns() -> Image.Image:
    page, draw = new_page("The Watery Part of the World")
    gutter = 60
    width = (PAGE[0] - 2 * MARGIN - gutter) // 2
    lines = wrap(draw, f"{TEXT}\n\n{TEXT}", width, 24)
    rest = write(draw, lines, MARGIN, 200, PAGE[1] - MARGIN, 24)
    right = MARGIN + width + gutter
    draw.rectangle([(right, 205), (right + width, 525)], outline=RULE, width=3, fill=(235, 240, 245))
    for index in range(9):
        y = 490 - index * 12
        draw.line([(right + 20, y), (right + width - 20, y - (index * 53) % 160)], fill=(60, 90, 140), width=3)
    draw.text((right, 540), "Fig. 1. Soundings off the coast.", font=font(20), fill=INK)
    write(draw, rest, right, 590, PAGE[1] - MARGIN, 24)
    return page


def table() -> Image.Image:
    page, draw = new_page("The Planets")
    columns, top, step = len(TABLE[0]), 220, 72
    edges = [MARGIN + column * (PAGE[0] - 2 * MARGIN) // columns for column in range(columns + 1)]
    draw.rectangle([(MARGIN, top), (PAGE[0] - MARGIN, top + step)], fill=(225, 230, 240))
    for row, cells in enumerate(TABLE):
        y = top + row * step
        draw.line([(MARGIN, y), (PAGE[0] - MARGIN, y)], fill=RULE, width=2)
        for column, cell in enumerate(cells):
            x = edges[column] + 14
            if column and row:
                x = edges[column + 1] - 24 - round(draw.textlength(cell, font=font(24)))
            draw.text((x, y + 22), cell, font=font(24 if row else 22), fill=INK)
    bottom = top + len(TABLE) * step
    draw.line([(MARGIN, bottom), (PAGE[0] - MARGIN, bottom)], fill=RULE, width=2)
    for x in edges:
        draw.line([(x, top), (x, bottom)], fill=RULE, width=2)
    lines = wrap(draw, TEXT, PAGE[0] - 2 * MARGIN, 24)
    write(draw, lines, MARGIN, bottom + 60, PAGE[1] - MARGIN, 24)
    return page


def main() -> None:
    folder = Path(__file__).parent
    for name, page in (("dense-text", dense_text()), ("table", table()), ("two-columns", two_columns())):
        page.save(folder / f"{name}.png", optimize=True, dpi=(150, 150))


if __name__ == "__main__":
    main()
