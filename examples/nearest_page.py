"""Extracts the features of a folder of pages and of a PDF, and finds the pages nearest to one of them.

    pip install 'deepencoder[extract]' matplotlib
    python examples/nearest_page.py [--model my-encoder] [--query examples/table.png] [--output nearest]

Writes OUTPUT/features, which `datasets.load_dataset` opens, and OUTPUT/nearest.png. Without a model, random weights
stand in: the ranking then only shows that the program runs, and says nothing about the pages.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from matplotlib import pyplot
from PIL import Image

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from deepencoder.extraction import ExtractionSettings, IdentifiedModel, extract_features, list_pages, load_page

PAGES = Path(__file__).parent


def make_pdf(path: Path) -> None:
    """Save two of the example pages as a PDF, one of them turned upside down."""
    first, second = (Image.open(PAGES / name).convert("RGB") for name in ("table.png", "two-columns.png"))
    first.save(path, save_all=True, append_images=[second.rotate(180)], resolution=150)


def find_nearest(rows: Any, query: str) -> list[tuple[float, dict[str, Any]]]:
    """Rank all other pages by the cosine similarity of their pooled features to those of the query."""
    pooled = np.asarray(rows["pooled"], dtype=np.float32)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    at = next(index for index, source in enumerate(rows["source"]) if Path(source) == Path(query))
    order = np.argsort(-(pooled @ pooled[at]), kind="stable")
    return [(float(pooled[index] @ pooled[at]), rows[int(index)]) for index in order if index != at]


def plot(query: Image.Image, nearest: list[tuple[str, Image.Image]], title: str, path: Path) -> None:
    figure, axes = pyplot.subplots(1, 1 + len(nearest), figsize=(2.6 * (1 + len(nearest)), 4), layout="constrained")
    for axis, (text, page) in zip(axes, [("query", query), *nearest], strict=True):
        axis.imshow(page)
        axis.set_title(text, fontsize=9)
        axis.axis("off")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)


def save_demo_model(folder: Path) -> str:
    """Save a tiny model with random weights, and return its name."""
    torch.manual_seed(0)
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(folder)
    DeepEncoderImageProcessor(mode="base").save_pretrained(folder)
    return str(folder)


def extract(sources: tuple[str, ...], name: str, output: Path) -> Any:
    """Extract pooled features, and open them as a dataset."""
    model = IdentifiedModel.find(name)
    processor = model.load_image_processor()
    settings = ExtractionSettings(sources, name, model.identity, processor.mode or "custom", dtype="float32")
    extract_features(settings, output, lambda: (model.load(), processor))
    return load_dataset(str(output), split="train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or a Hub id of a DeepEncoder")
    parser.add_argument("--query", default=str(PAGES / "table.png"))
    parser.add_argument("--output", type=Path, default=Path("nearest"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    name = options.model or save_demo_model(options.output / "demo-encoder")
    pdf = options.output / "pages.pdf"
    make_pdf(pdf)
    pages = [str(path) for path in sorted(PAGES.glob("*.png")) if path.name != "encoding.png"]
    sources = tuple(dict.fromkeys([options.query, *pages, str(pdf)]))

    ranked = find_nearest(extract(sources, name, options.output / "features"), options.query)
    for similarity, row in ranked:
        print(f"{similarity:.6f}  {row['source']}, page {row['page']}")
    images = {(page.source, page.page): load_page(page) for page in list_pages(sources)}
    shown = [
        (f"{similarity:.6f}: {Path(row['source']).name}, {row['page']}", images[row["source"], row["page"]])
        for similarity, row in ranked[:4]
    ]
    title = "nearest by pooled features" + " (random weights)" * (options.model is None)
    plot(images[options.query, 0], shown, title, options.output / "nearest.png")
    print(f"See {options.output / 'nearest.png'}.")


if __name__ == "__main__":
    main()
