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
from .finding import QUERIES, Vectors, late_interaction, recall, vectors_of
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
                "without edges": round(scores.accuracy(is_inner=True), 4),
                "example": scores.example,
            }
            for number, tokens in scores.tokens.items():
                everything.tokens[number] += tokens
                everything.errors[number] += scores.errors[number]
                everything.inner_errors[number] += scores.inner_errors[number]
        by_density = {
            f"{low}-{high}": [round(everything.accuracy(low, high, is_inner), 4) for is_inner in (False, True)]
            for low, high in DENSITIES
        }
        result[source] = {"by size of print": by_size, "by characters in a token": by_density}
    return result


def _compare(queries: Vectors, pages: Vectors) -> dict[str, list[float]]:
    """Return recall at 1 and at 10 by each kind of vector."""
    mean = pages.tokens.mean((0, 1))  # Tokens share a large mean, which would hide their differences.
    words, others = (normalize(vectors.tokens - mean, dim=-1) for vectors in (queries, pages))
    sums, other_sums = (normalize((vectors.tokens - mean).mean(1), dim=-1) for vectors in (queries, pages))
    return {
        "pooled vector": recall(queries.pooled @ pages.pooled.T),
        "mean of the tokens": recall(sums @ other_sums.T),
        "late interaction": recall(late_interaction(words, others)),
        "thumbnail": recall(queries.thumbnails @ pages.thumbnails.T),
    }


def find_pages(encoders: dict[str, DeepEncoder], folder: str, count: int) -> Iterator[dict[str, object]]:
    """Yield recall at 1 and at 10 for each kind of query and each model."""
    materials = Materials(folder, "test")
    pages: dict[str, Vectors] = {}
    for kind, draw in QUERIES.items():
        images = [draw(number, materials) for number in range(count)]
        for name, encoder in encoders.items():
            vectors = vectors_of(encoder, images)
            if name in pages:
                yield {"query": kind, "model": name, **_compare(vectors, pages[name])}
            else:
                pages[name] = vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("materials")
    parser.add_argument("export", type=Path)
    parser.add_argument("--reading", action="store_true", help="Evaluate reading.")
    parser.add_argument("--finding", action="store_true", help="Evaluate finding.")
    parser.add_argument("--side", type=int, default=640, help="Side of the pages that are read, in pixels.")
    parser.add_argument("--pages", type=int, default=12, help="Pages to read for each size of print.")
    parser.add_argument("--searched", type=int, default=1000, help="Pages to search.")
    options = parser.parse_args()
    reader = load_reader(options.export)
    if options.reading:
        print(json.dumps(read_pages(reader, options.materials, options.side, options.pages), indent=1), flush=True)
    if options.finding:
        torch.manual_seed(0)
        encoders = {"page reader": reader.encoder, "random weights": DeepEncoder(reader.encoder.config).eval()}
        for result in find_pages(encoders, options.materials, options.searched):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
