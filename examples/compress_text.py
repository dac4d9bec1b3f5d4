"""Turns a text into page images, these into vision tokens, and the tokens back into text.

    python examples/compress_text.py [TEXT.txt] [--font-size 24] [--model MODEL] [--curve curve.png]

Prints how many characters and vision tokens there are, and how many characters came back right. With `--curve`, does
so for several sizes of print and plots accuracy against characters in a token (this needs matplotlib): the smaller the
print, the more a token has to carry. The model is by default the small one that ships with the package; any other one
needs a reading head of its own. Without TEXT.txt, the beginning of this project's licence is used.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepencoder import PageReader, page_reader, render_text

FONT_SIZES = (12, 14, 16, 18, 20, 24, 28, 32, 40)


@dataclass(frozen=True)
class Result:
    """What came back of a text.

    Args:
        font_size: size of the print in pixels.
        pages, characters, tokens: their numbers. Only tokens count whose box holds text.
        accuracy: 1 - edit distance / characters.
        text: what was read.
    """

    font_size: int
    pages: int
    characters: int
    tokens: int
    accuracy: float
    text: str


def edit_distance(read: str, truth: str) -> int:
    """Return the number of characters to insert, delete or replace to turn one text into the other."""
    codes = np.frombuffer(truth.encode("utf-32-le"), dtype=np.uint32)
    ramp = np.arange(len(codes) + 1)
    costs = ramp.copy()
    for row, character in enumerate(read, 1):
        replaced = np.append(row, np.minimum(costs[:-1] + (codes != ord(character)), costs[1:] + 1))
        # Insertions go on from the left: the smallest of all earlier costs plus the distance.
        costs = np.minimum.accumulate(replaced - ramp) + ramp
    return int(costs[-1])


def compress(reader: PageReader, text: str, font_size: int) -> Result:
    """Print a text, encode the pages, and read the tokens."""
    side = reader.encoder.config.sam_config.image_size
    pages = render_text(text, size=(side, side), font_size=font_size)
    read = reader.read([page.image for page in pages])
    characters = sum(len(page.text) for page in pages)
    errors = sum(edit_distance(found.text, page.text) for found, page in zip(read, pages, strict=True))
    tokens = sum(any(found) for page in read for found in page.tokens)
    accuracy = max(0.0, 1 - errors / max(1, characters))
    return Result(font_size, len(pages), characters, tokens, accuracy, "\n".join(page.text for page in read))


def plot(results: list[Result], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    ratios = [result.characters / max(1, result.tokens) for result in results]
    axes.plot(ratios, [100 * result.accuracy for result in results], marker="o")
    for ratio, result in zip(ratios, results, strict=True):
        axes.annotate(
            f"{result.font_size} px", (ratio, 100 * result.accuracy), xytext=(4, 4), textcoords="offset points"
        )
    axes.set(xlabel="characters in a vision token", ylabel="characters right, %", ylim=(0, 101))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", type=Path, help="a text file in UTF-8")
    parser.add_argument("--font-size", type=int, default=24, help="size of the print in pixels")
    parser.add_argument("--model", default=page_reader(), help="a folder or Hub id of a model with a reading head")
    parser.add_argument("--characters", type=int, default=2000, help="how much of the text is used")
    parser.add_argument("--curve", type=Path, help="a PNG file for the plot over sizes of print")
    options = parser.parse_args()
    path = options.text or Path(__file__).parents[1] / "LICENSE"
    text = "\n".join(filter(None, (" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines())))
    reader = PageReader.from_pretrained(options.model)
    sizes = FONT_SIZES if options.curve else (options.font_size,)
    results = [compress(reader, text[: options.characters], size) for size in sizes]
    print("print  pages  characters  tokens  characters in a token  right")
    for result in results:
        ratio = result.characters / max(1, result.tokens)
        print(
            f"{result.font_size:3} px  {result.pages:5}  {result.characters:10}  {result.tokens:6}  {ratio:21.1f}  "
            f"{result.accuracy:5.1%}"
        )
    if options.curve:
        plot(results, options.curve)
        print(f"See {options.curve}.")
    else:
        print(f"\n{results[0].text}")


if __name__ == "__main__":
    main()
