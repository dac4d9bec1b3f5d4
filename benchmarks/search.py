"""Measures the search of pages: bytes a page, and pages a second, over synthetic features of many pages.

    python benchmarks/search.py [--pages 100000] [--pool 2] [--width 128] [--queries 20] [--folder FOLDER]

No page is encoded: the vectors are random, with the shapes and the dtype of those that `deepencoder extract --outputs
pooled,multi_vector` writes for the published size in base mode. They are written by the same code into shards,
and read and searched in the way of examples/search_pages.py. Random vectors say nothing about the quality of a search;
that the page is found from which a query was made only shows that the steps fit together.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import faiss
import numpy as np
import torch
from common import RESULTS, device_slug, environment, summarize
from sentence_transformers.util import mean_maxsim

from deepencoder import DeepEncoderConfig, DeepEncoderImageProcessor
from deepencoder.extraction import ExtractionSettings, Page, PageFeatures, RunOptions
from deepencoder.extraction.arrow import feature_fields, page_schema
from deepencoder.extraction.shard_writer import ShardWriter
from deepencoder.processing.token_pooling import VectorOptions

OUTPUTS = ("pooled", "multi_vector")
CANDIDATES = 100
CHUNK = 2048  # Pages that are drawn, and that are compared with a query at once.


def draw(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw vectors of length 1."""
    values = generator.standard_normal(shape, dtype=np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def make_rows(count: int, shape: tuple[int, int], pooled_width: int) -> Iterator[PageFeatures]:
    """Make pages. Only the first of them are drawn; the others have the same values in other places, which is fast."""
    generator = np.random.default_rng(0)
    pooled = draw(generator, CHUNK, pooled_width).astype(np.float16)
    vectors = draw(generator, CHUNK, *shape).astype(np.float16)
    for number in range(count):
        at, turn = number % CHUNK, number // CHUNK
        outputs = {name: np.roll(array[at], turn, -1) for name, array in zip(OUTPUTS, (pooled, vectors), strict=True)}
        digest = hashlib.sha256(f"{number}".encode()).hexdigest()
        yield PageFeatures(Page("synthetic.pdf", number), 1024, 1448, digest, (1, 1), 273, outputs)


def write(options: argparse.Namespace, folder: Path) -> float:
    """Write the shards, and return the seconds that this took."""
    vectors = VectorOptions(options.pool, options.width)
    config, processor = DeepEncoderConfig(), DeepEncoderImageProcessor(mode="base")
    fields = feature_fields(config, processor, OUTPUTS, "float16", None, vectors)
    settings = ExtractionSettings(
        ("synthetic",), "synthetic", "0", "base", OUTPUTS, vector_pool=options.pool, vector_width=options.width
    )
    folder.mkdir()
    writer = ShardWriter(folder, page_schema(fields), settings, RunOptions())
    shape = (vectors.count_cells(16, 16), vectors.width_for(config.hidden_size))
    start = time.perf_counter()
    for row in make_rows(options.pages, shape, config.clip_config.hidden_size):
        writer.add(row)
    writer.close()
    return time.perf_counter() - start


def blur(generator: np.random.Generator, vectors: np.ndarray) -> np.ndarray:
    """Turn vectors of length 1 by about 40 degrees, each in a direction of its own."""
    mixed = 0.77 * vectors.astype(np.float32) + 0.64 * draw(generator, *vectors.shape)
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def compare_with_all(rows: Any, query: torch.Tensor) -> torch.Tensor:
    """Return the MaxSim of a query `(n, width)` with every page."""
    scores = []
    for batch in rows.with_format("arrow").select_columns(["multi_vector"]).iter(CHUNK):
        column = batch["multi_vector"].combine_chunks()
        count, width = column.type.list_size, column.type.value_type.list_size
        values = column.flatten().flatten().to_numpy().reshape(-1, width)
        similarities = torch.from_numpy(values.astype(np.float32)) @ query.T  # (pages * n, n of the query)
        scores.append(similarities.unflatten(0, (-1, count)).amax(1).mean(-1))
    return torch.cat(scores)


def timed(function: Callable[[], Any], times: list[float]) -> Any:
    start = time.perf_counter()
    result = function()
    times.append(time.perf_counter() - start)
    return result


def search(rows: Any, pooled: np.ndarray, vectors: torch.Tensor) -> int:
    """Search in two steps, and return the number of the best page."""
    _, found = rows.get_nearest_examples("pooled", pooled, k=CANDIDATES)
    (scores,) = mean_maxsim([vectors], list(torch.from_numpy(np.stack(found["multi_vector"])).float()))
    return int(found["page"][int(scores.argmax())])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    writing, loading, indexing = [write(options, folder / "features")], [], []
    stored = sum(path.stat().st_size for path in (folder / "features").rglob("*.parquet"))
    cache = str(folder / "cache")
    rows = timed(
        lambda: datasets.load_dataset(str(folder / "features"), split="train", cache_dir=cache), loading
    ).with_format("numpy")
    metric = {"string_factory": "L2norm,Flat", "metric_type": faiss.METRIC_INNER_PRODUCT}
    timed(lambda: rows.add_faiss_index("pooled", **metric), indexing)
    generator = np.random.default_rng(1)
    times: dict[str, list[float]] = {"pooled": [], "two_steps": [], "all_multi_vectors": []}
    for number, at in enumerate(generator.integers(0, options.pages, options.queries).tolist()):
        page = rows[at]
        pooled, vectors = (blur(generator, page[name]) for name in OUTPUTS)
        query = torch.from_numpy(vectors)
        _, (nearest, *_) = timed(lambda q=pooled: rows.search("pooled", q, k=CANDIDATES), times["pooled"])
        found = [nearest, timed(lambda q=pooled, v=query: search(rows, q, v), times["two_steps"])]
        if number < options.rounds:
            scores = timed(lambda v=query: compare_with_all(rows, v), times["all_multi_vectors"])
            found.append(int(scores.argmax()))
        if set(map(int, found)) != {int(page["page"])}:
            raise RuntimeError(f"the query of page {at} found {found}")
    search_seconds = {name: summarize(found[1:]) for name, found in times.items()}
    return {
        "pages": options.pages,
        "vectors_per_page": VectorOptions(options.pool).count_cells(16, 16),
        "width": options.width,
        "bytes_per_page": {
            "on_disk": round(stored / options.pages, 1),
            **{name: page[name].size * 2 for name in OUTPUTS},
        },
        "pages_per_second_written": round(options.pages / writing[0]),
        "seconds": {"load_dataset": round(loading[0], 2), "add_faiss_index": round(indexing[0], 2)},
        "seconds_per_query": search_seconds,
        "pages_per_second_searched": {
            name: round(options.pages / found["median_s"]) for name, found in search_seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=100_000)
    parser.add_argument("--pool", type=int, default=2, help="side of a cell, in tokens")
    parser.add_argument("--width", type=int, default=128, help="length of a vector")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4, help="queries that are also compared with every page")
    parser.add_argument("--folder", type=Path, help="where the shards and their copy go; default: a temporary folder")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    load = round(os.getloadavg()[0], 1)  # What the machine was doing besides.
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measured = measure(options, Path(name))
    versions = {name: version(name) for name in ("datasets", "faiss-cpu", "pyarrow", "sentence-transformers")}
    described = environment(torch.device("cpu"))
    described["versions"] |= versions
    report = {"environment": described, "load_average_before": load, **measured}
    suffix = "" if (options.pool, options.width) == (2, 128) else f"_pool{options.pool}_width{options.width}"
    (RESULTS / f"search_{device_slug()}{suffix}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
