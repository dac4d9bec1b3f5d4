"""Searches images, PDFs and folders for the pages that look most like a query, in two steps.

    pip install '.[search]'
    python examples/search_pages.py [PAGES ...] [--model my-encoder] [--query examples/table.png] [--output search]

First, faiss finds candidates by their pooled vectors. Then MaxSim compares the parts of the candidates with the parts
of the query. Writes OUTPUT/features, a dataset of parquet files, and OUTPUT/nearest.png. Without a model, the small
one that ships with the package is used. Without PAGES, the example pages are searched, and a PDF that is made of them.
"""

import argparse
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from datasets import load_dataset
from PIL import Image, ImageDraw, ImageOps
from sentence_transformers.util import mean_maxsim

from deepencoder import page_reader
from deepencoder.extraction import (
    ExtractionSettings,
    FeatureExtractor,
    IdentifiedModel,
    extract_features,
    list_pages,
    load_page,
)

PAGES = Path(__file__).parent
OUTPUTS = ("pooled", "multi_vector")
CANDIDATES = 100


def make_pdf(path: Path) -> None:
    """Save two of the example pages as a PDF, one of them turned upside down."""
    first, second = (Image.open(PAGES / name).convert("RGB") for name in ("table.png", "two-columns.png"))
    first.save(path, save_all=True, append_images=[second.rotate(180)], resolution=150)


def extract(sources: tuple[str, ...], name: str, output: Path) -> Any:
    """Extract the features of a corpus, and open them as a dataset with an index of the pooled vectors."""
    model = IdentifiedModel.find(name)
    processor = model.load_image_processor()
    settings = ExtractionSettings(sources, name, model.identity, processor.mode or "custom", outputs=OUTPUTS)
    extract_features(settings, output, lambda: (model.load(), processor))
    # By the name of its folder alone, datasets would take a corpus for another one that it has opened before.
    rows = load_dataset("parquet", data_files=str(output / "data/*.parquet"), split="train").with_format("numpy")
    # The inner product of vectors of length 1 is their cosine.
    rows.add_faiss_index("pooled", string_factory="L2norm,Flat", metric_type=faiss.METRIC_INNER_PRODUCT)
    return rows


def to_vectors(page: np.ndarray) -> torch.Tensor:
    """Return the vectors of a page, without the zeros that stand for its padding."""
    return torch.from_numpy(page[page.any(-1)]).float()


def search(rows: Any, pooled: np.ndarray, vectors: np.ndarray, count: int) -> list[tuple[float, str, int]]:
    """Find pages by the features of a query; return the score, the source and the number of each, best first."""
    _, found = rows.get_nearest_examples("pooled", pooled, k=min(CANDIDATES, len(rows)))
    (scores,) = mean_maxsim([to_vectors(vectors)], [to_vectors(page) for page in found["multi_vector"]])
    best = scores.argsort(descending=True, stable=True)[:count].tolist()
    return [(float(scores[at]), str(found["source"][at]), int(found["page"][at])) for at in best]


def draw(pages: list[tuple[str, Image.Image]], path: Path) -> None:
    """Draw pages beside each other, each with a line of text above it."""
    sheet = Image.new("RGB", (260 * len(pages), 370), "white")
    for column, (text, page) in enumerate(pages):
        ImageDraw.Draw(sheet).text((260 * column + 10, 10), text, "black")
        sheet.paste(ImageOps.contain(page, (240, 320)), (260 * column + 10, 40))
    sheet.save(path)


def gather_examples(folder: Path) -> tuple[str, ...]:
    """Return the example pages, and a PDF in `folder` that is made of them."""
    pdf = folder / "pages.pdf"
    make_pdf(pdf)
    pages = [str(path) for path in sorted(PAGES.glob("*.png")) if path.name != "encoding.png"]
    return (*pages, str(pdf))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="images, PDFs and folders to search")
    parser.add_argument("--model", default=page_reader(), help="a folder or a Hub id of a DeepEncoder")
    parser.add_argument("--query", default=str(PAGES / "table.png"))
    parser.add_argument("--output", type=Path, default=Path("search"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    name = options.model
    sources = tuple(options.pages) or gather_examples(options.output)
    rows = extract(sources, name, options.output / "features")

    query = Image.open(options.query).convert("RGB")
    features = FeatureExtractor(name, outputs=OUTPUTS, dtype="float32")({"image": [query]})
    nearest = search(rows, features["pooled"][0], features["multi_vector"][0], count=4)
    for score, source, page in nearest:
        print(f"{score:.4f}  {source}, page {page}")
    images = {(page.source, page.page): load_page(page) for page in list_pages(sources)}
    shown = [(f"{score:.4f}: {Path(source).name}, {page}", images[source, page]) for score, source, page in nearest]
    draw([("query", query), *shown], options.output / "nearest.png")
    print(f"See {options.output / 'nearest.png'}.")


if __name__ == "__main__":
    main()
