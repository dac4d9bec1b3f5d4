"""What the tests of extraction share: loading models, encoding pages with them, and running extractions."""

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder.extraction import (
    OUTPUTS,
    ExtractionSettings,
    ExtractionSummary,
    Page,
    PageEncoder,
    PageFeatures,
    ProcessGroup,
    RunOptions,
    extract_features,
    iterate_features,
    list_pages,
)
from deepencoder.extraction.batching import BatchBudget
from deepencoder.extraction.preparation import PreparedImage

Load = Callable[[], tuple[Any, Any]]


@cache
def load_once(folder: Path) -> tuple[Any, Any]:
    return load(folder)


def load(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)


def own_features(folder: Path, image: Any) -> dict[str, np.ndarray]:
    """Return the outputs for one image from the model and the image processor alone."""
    model, processor = load_once(folder)
    with torch.no_grad():
        found = model(**processor(image, return_tensors="pt"))
    tokens = [found.last_hidden_state[0]]
    if found.local_last_hidden_state is not None:
        tokens.append(found.local_last_hidden_state.flatten(0, 1))
    expected = {"pooled": found.pooler_output[0], "tokens": torch.cat(tokens), "vision_tokens": found.vision_tokens[0]}
    return {name: tensor.numpy() for name, tensor in expected.items()} | {
        "multi_vector": own_vectors(found, image, processor)
    }


def own_vectors(found: Any, image: Any, processor: Any) -> np.ndarray:
    """Return the vectors of cells of 2 x 2 tokens, from a white page on black padding that shows where the page is."""
    size = image.size if isinstance(image, Image.Image) else Image.open(image).size
    white = Image.new("RGB", size, "white")
    view = processor(white, background_color=0, do_rescale=False, do_normalize=False)["pixel_values"][0]
    rows, columns = view.shape[1] // 64, view.shape[2] // 64
    shown = [
        view[:, 64 * (cell // columns) :, 64 * (cell % columns) :][:, :64, :64].any() for cell in range(rows * columns)
    ]
    grids = [found.last_hidden_state[0].numpy() * np.reshape(shown, (-1, 1))]
    grids += [] if found.local_last_hidden_state is None else list(found.local_last_hidden_state.numpy())
    vectors = []
    for grid in grids:
        side = round(len(grid) ** 0.5)
        square = grid.reshape(side, side, -1)
        corners = [(top, left) for top in range(0, side, 2) for left in range(0, side, 2)]
        vectors += [square[top : top + 2, left : left + 2].sum((0, 1)) for top, left in corners]
    return np.stack([vector / max(np.linalg.norm(vector), 1e-12) for vector in vectors])


def settings(*sources: Path, **fields: Any) -> ExtractionSettings:
    facts = {"model": "m", "commit": "c", "mode": "custom", "outputs": ("pooled",)} | fields
    return ExtractionSettings(sources=tuple(map(str, sources)), **facts)  # type: ignore[arg-type]


def rows_of(output: Path) -> list[dict[str, Any]]:
    shards = sorted((output / "data").glob("*.parquet"))
    return pyarrow.parquet.read_table(shards).to_pylist() if shards else []


def names_of(output: Path) -> list[tuple[str, int]]:
    return sorted((row["source"], row["page"]) for row in rows_of(output))


def list_pages_of(folder: Path) -> list[str]:
    return [page.source for page in list_pages([folder])]


def encode(
    images: Sequence[PreparedImage],
    model: Any,
    processor: Any,
    outputs: Sequence[str] = tuple(OUTPUTS),
    dtype: str = "float16",
    budget: BatchBudget | None = None,
) -> list[Any]:
    return PageEncoder(model, processor, budget, outputs=outputs, dtype=dtype).encode_images(images)


def iterate(
    pages: Iterable[Page],
    model: Any,
    processor: Any,
    outputs: Sequence[str] = tuple(OUTPUTS),
    dtype: str = "float16",
    batch_size: int | str = "auto",
    ahead: int | None = None,
    **options: Any,
) -> Generator[PageFeatures, None, None]:
    budget = BatchBudget(batch_size, next(model.parameters()).device, ahead)
    encoder = PageEncoder(model, processor, budget, outputs=outputs, dtype=dtype)
    return iterate_features(pages, encoder, **options)


def extract(
    settings: ExtractionSettings,
    output: Path,
    load: Load,
    processes: ProcessGroup | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Any], None] = lambda _: None,
    **options: Any,
) -> ExtractionSummary:
    """Run an extraction with some [`RunOptions`]."""
    return extract_features(
        settings, output, load, RunOptions(**options), processes, stop=stop, on_progress=on_progress
    )


def alone(rank: int, world_size: int, gathered: list[Any] | None = None) -> ProcessGroup:
    """Return one process of several, as if the others ran and had nothing to report."""

    def gather(value: Any) -> list[Any]:
        if gathered is not None:
            gathered.append(value)
        return [value if value is not None else "the main process' summary"]

    return ProcessGroup(rank, world_size, gather)
