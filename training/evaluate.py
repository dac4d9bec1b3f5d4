"""Evaluate an exported page reader: reading by size of print and by characters in a token, and finding.

    python -m training.evaluate MATERIALS EXPORT --reading --finding

EXPORT is what `python -m training.export` wrote.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import normalize

from deepencoder import DeepEncoder

from .evaluation import Scores, score_pages
from .export import load_reader
from .finding import QUERIES, late_interaction, recall, vectors_of
from .materials import Materials
from .pages import Page, PageStyle, draw_page
from .pdf_pages import pdf_squares
from .reader import ReadingObjective

__all__ = ["find_pages", "read_pages"]

SIZES = (12, 14, 16, 18, 20, 24, 28, 33, 40, 48)
"""Sizes of print in pixels."""
DENSITIES = ((3, 4), (5, 7), (8, 12), (13, 18), (19, 30), (31, 60))
"""Fewest and most characters of a token."""


def _drawn(materials: Materials, size: int, side: int, count: int) -> Iterator[Page]:
    style = PageStyle(side, side, (size, size), cut=False, varied=False)
    return (draw_page(2 * 10**12 + number, materials, style) for number in range(count))


def read_pages(reader: ReadingObjective, folder: str, side: int, count: int) -> dict[str, object]:
    """Return accuracies on held-out pages and real PDFs, by size of print and by characters in a token."""
    materials = Materials(folder, "test")
    result: dict[str, object] = {}
    for source in ("held-out pages", "PDFs"):
        by_size = {}
        everything = Scores()
        for size in SIZES:
            pages = (
                _drawn(materials, size, side, count)
                if source == "held-out pages"
                else pdf_squares(Path(folder) / "pdfs", size, side)
            )
            scores = score_pages(reader, pages)
            by_size[size] = {
                "characters in a token": round(scores.density(), 1),
                "accuracy": round(scores.accuracy(), 4),
                "example": scores.example,
            }
            for number, tokens in scores.tokens.items():
                everything.tokens[number] += tokens
                everything.errors[number] += scores.errors[number]
        by_density = {f"{low}-{high}": round(everything.accuracy(low, high), 4) for low, high in DENSITIES}
        result[source] = {"by size of print": by_size, "by characters in a token": by_density}
    return result


@torch.no_grad()
def find_pages(encoder: DeepEncoder, folder: str, count: int) -> dict[str, dict[str, list[float]]]:
    """Return recall at 1 and at 10 of each kind of query by each kind of vector."""
    materials = Materials(folder, "test")

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, tokens, output = encoder.encode_view(pixels)
        assert output.pooler_output is not None
        return output.pooler_output, tokens

    found, result = {}, {}
    for name, draw in QUERIES.items():
        found[name] = vectors_of(encode, (draw(number, materials) for number in range(count)))
    pages = found.pop("page")
    mean = pages[1].mean((0, 1))  # Tokens share a large mean, which would hide their differences.
    for name, queries in found.items():
        words, others = (normalize(tokens - mean, dim=-1) for tokens in (queries[1], pages[1]))
        sums = (normalize((tokens - mean).mean(1), dim=-1) for tokens in (queries[1], pages[1]))
        first, second = sums
        result[name] = {
            "pooled vector": recall(queries[0] @ pages[0].T),
            "mean of the tokens": recall(first @ second.T),
            "late interaction": recall(late_interaction(words, others)),
            "thumbnail": recall(queries[2] @ pages[2].T),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("materials")
    parser.add_argument("export", type=Path)
    parser.add_argument("--reading", action="store_true", help="Evaluate reading.")
    parser.add_argument("--finding", action="store_true", help="Evaluate finding.")
    parser.add_argument("--random", action="store_true", help="Evaluate finding with random weights, too.")
    parser.add_argument("--side", type=int, default=640, help="Side of the pages that are read, in pixels.")
    parser.add_argument("--pages", type=int, default=12, help="Pages to read for each size of print.")
    parser.add_argument("--searched", type=int, default=1000, help="Pages to search.")
    options = parser.parse_args()
    reader = load_reader(options.export)
    if options.reading:
        print(json.dumps(read_pages(reader, options.materials, options.side, options.pages), indent=1), flush=True)
    if options.finding:
        print(json.dumps(find_pages(reader.encoder, options.materials, options.searched), indent=1), flush=True)
    if options.random:
        torch.manual_seed(0)
        encoder = DeepEncoder(reader.encoder.config).eval()
        print(json.dumps(find_pages(encoder, options.materials, options.searched), indent=1))


if __name__ == "__main__":
    main()
