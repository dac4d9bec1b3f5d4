"""Draws the picture of the README: a page, what its vision tokens are like, and what is read from three of them.

    python examples/draw_reading.py [PAGE.png] [--output examples/encoding.png]

From left to right: the page; the features of each token as colours, by their first three principal components; how
similar all tokens are to the outlined one; and three tokens' boxes, enlarged, each with the text that the reading head
writes when it is given that token and nothing else.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from deepencoder import PageReader, draw_similarity, page_reader
from deepencoder.processing.visualization import features_to_colors, join_panels
from deepencoder.reading.page_text import PageText

HEIGHT = 760
SHOWN = 3
SEE_THROUGH = 0.35


def encode(reader: PageReader, page: Image.Image) -> tuple[torch.Tensor, PageText]:
    """Return the vision tokens of a page `(L, dim)`, and what is read of them."""
    inputs = reader.processor(page, return_tensors="pt")
    with torch.no_grad():
        tokens = reader.encoder(**inputs).vision_tokens[0]
    (read,) = reader.read(page)
    return tokens, read


def draw_colors(page: Image.Image, tokens: torch.Tensor, read: PageText) -> Image.Image:
    """Draw the features of the tokens as colours, with the page shining through."""
    layout = read.layout
    kind = "tile" if layout.mosaic_index.size else "view"
    (colors,) = features_to_colors([tokens[layout.grid_index(kind)]])  # (h, w, 3)
    channels = [layout.map_to_page(colors[..., channel], kind) for channel in range(3)]
    image = Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))
    return Image.blend(image, page, SEE_THROUGH)


def choose_tokens(read: PageText) -> list[int]:
    """Return tokens with much text, from different parts of the page."""
    layout = read.layout
    lengths = [len(text) for text in read.tokens]
    kind = "tile" if layout.mosaic_index.size else "view"
    thirds = [layout.page_size[0] * (part + 1) / SHOWN for part in range(SHOWN)]
    chosen: list[int] = []
    for low, high in zip([0.0, *thirds], thirds, strict=False):
        inside = [at for at in range(len(layout)) if low <= layout.boxes[at, 1] < high and layout.kind[at] == kind]
        if inside:
            chosen.append(max(inside, key=lengths.__getitem__))
    return chosen


def draw_texts(page: Image.Image, read: PageText, chosen: list[int]) -> Image.Image:
    """Draw the boxes of tokens, enlarged, and under each of them its text."""
    side, gap = 150, 90
    font = ImageFont.load_default(18)
    panel = Image.new("RGB", (side + 60, HEIGHT), "white")
    draw = ImageDraw.Draw(panel)
    for number, token in enumerate(chosen):
        top = 20 + number * (side + gap)
        box = tuple(read.layout.boxes[token].round().astype(int).tolist())
        panel.paste(page.crop(box).resize((side, side), Image.Resampling.BICUBIC), (20, top))
        draw.rectangle((20, top, 20 + side, top + side), outline=(220, 60, 30), width=3)
        draw.multiline_text((20, top + side + 8), read.tokens[token], font=font, fill="black", spacing=4)
    return panel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", default=str(Path(__file__).parent / "two-columns.png"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "encoding.png")
    parser.add_argument("--model", default=page_reader(), help="a folder or Hub id of a model with a reading head")
    options = parser.parse_args()
    page = Image.open(options.page).convert("RGB")
    tokens, read = encode(PageReader.from_pretrained(options.model), page)
    chosen = choose_tokens(read)
    panels = [page, draw_colors(page, tokens, read), draw_similarity(page, tokens, chosen[0], read.layout)]
    width = round(page.width * HEIGHT / page.height)
    small = [panel.resize((width, HEIGHT), Image.Resampling.LANCZOS) for panel in panels]
    # A palette makes the file several times as small.
    join_panels([*small, draw_texts(page, read, chosen)]).quantize(256, dither=Image.Dither.NONE).save(
        options.output, optimize=True
    )
    print(f"See {options.output}.")


if __name__ == "__main__":
    main()
