"""What a page costs beside the model: from a JPEG to features in a shard, on one core.

    python benchmarks/fixed_cost.py [--mode tiny] [--count 64] [--rounds 5]

Each step of `deepencoder extract` is timed for itself, in the process that computes, and whole runs of `extract` and
`encode` beside them; the forward passes of the model are subtracted. A run also opens and closes its folder.
The models are the tiny one of the tests and that of `training/`, of 5.6 million parameters, with random weights. The
pages are those of `examples/`, 1240 x 1754 pixels: as they are, and as grey ones.
"""

import argparse
import hashlib
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, randomize
from PIL import Image
from processors import processor_slug

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from deepencoder.commands.encode import _Encoder
from deepencoder.extraction import (
    ExtractionSettings,
    PageEncoder,
    RunOptions,
    extract_features,
    iterate_features,
    list_pages,
    load_page,
)
from deepencoder.extraction.outputs import MODEL_OUTPUTS
from deepencoder.extraction.preparation import prepare_image
from deepencoder.extraction.shard_writer import ShardWriter

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[!e]*.png"))


def reader_config() -> DeepEncoderConfig:
    sys.path.insert(0, str(ROOT))  # The recipe is not installed.
    from training.reader import page_reader_config

    return page_reader_config()


MODELS: dict[str, Callable[[], DeepEncoderConfig]] = {"tiny": DeepEncoderConfig.tiny, "page reader": reader_config}
STEPS = ("list", "decode", "resize", "hash", "batch, normalise, take outputs", "write")
"""What makes up the fixed cost of `deepencoder extract --workers 0`; with workers, `pipe` is added."""


class Clock:
    """Milliseconds of each step."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def time(self, step: str, pages: int = 1) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spent[step].append(1e3 * (time.perf_counter() - start) / pages)

    @contextmanager
    def beside(self, forward: "Forward", step: str, pages: int = 1) -> Iterator[None]:
        """Time a step without the forward passes in it."""
        forward.milliseconds = 0.0
        start = time.perf_counter()
        yield
        whole = 1e3 * (time.perf_counter() - start)
        self.spent[step].append((whole - forward.milliseconds) / pages)

    def medians(self) -> dict[str, float]:
        return {step: round(statistics.median(times), 3) for step, times in self.spent.items()}


class Forward:
    """Milliseconds of the model's forward passes, since they were last reset, by hooks."""

    def __init__(self, model: Any) -> None:
        self.milliseconds = self._start = 0.0
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.milliseconds += 1e3 * (time.perf_counter() - self._start)


def make_corpus(folder: Path, grey: bool, count: int) -> tuple[str, ...]:
    """Save `count` pages as JPEGs."""
    folder.mkdir()
    for number in range(count):
        image = Image.open(EXAMPLES[number % len(EXAMPLES)]).convert("L" if grey else "RGB").convert("RGB")
        image.save(folder / f"{number:03d}.jpg", quality=90)
    return (str(folder),)


def time_steps(clock: Clock, forward: Forward, sources: tuple[str, ...], encoder: PageEncoder) -> None:
    """Take each page through the steps of an extraction, one by one."""
    processor = encoder.image_processor
    pages = list(list_pages(sources))
    with clock.time("list", len(pages)):
        list(list_pages(sources))
    for page in pages:
        with clock.time("decode"):
            image = load_page(page)
        with clock.time("resize"):
            processor(image, do_rescale=False, do_normalize=False)
        with clock.time("hash"):
            hashlib.sha256(image.tobytes()).hexdigest()
        prepared = prepare_image(image, processor)
        with clock.time("pipe"):
            pickle.loads(pickle.dumps(prepared, protocol=pickle.HIGHEST_PROTOCOL))
        with clock.beside(forward, "batch, normalise, take outputs"):
            encoder.encode_images([prepared])
        clock.spent["forward"].append(forward.milliseconds)


def time_runs(
    clock: Clock, forward: Forward, encoder: PageEncoder, settings: ExtractionSettings, folder: Path
) -> None:
    """Time the writing of all pages, and the whole commands."""
    pages = list(list_pages(settings.sources))
    rows = list(iterate_features(pages, encoder, workers=0))
    with tempfile.TemporaryDirectory(dir=folder) as name, clock.time("write", len(rows)):
        writer = ShardWriter(Path(name), encoder.schema, settings, RunOptions())
        for row in rows:
            writer.add(row)
        writer.close()
    options = RunOptions(workers=0, batch_size=1)
    with tempfile.TemporaryDirectory(dir=folder) as name, clock.beside(forward, "extract", len(pages)):
        extract_features(settings, Path(name) / "output", lambda: (encoder.model, encoder.image_processor), options)
    one_by_one = _Encoder(encoder.model, encoder.image_processor, None, None)
    for index, page in enumerate(pages):
        with clock.beside(forward, "encode"):
            one_by_one.encode(page.source, index)


def measure(name: str, grey: bool, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = randomize(DeepEncoder(MODELS[name]()))
    processor = DeepEncoderImageProcessor(mode=options.mode)
    encoder = PageEncoder(model, processor, outputs=MODEL_OUTPUTS)
    sources = make_corpus(folder / f"{name} {grey}", grey, options.count)
    settings = ExtractionSettings(sources, "random", "0", options.mode, outputs=MODEL_OUTPUTS)
    clock, forward = Clock(), Forward(model)
    for index in range(options.rounds + 1):
        time_steps(clock, forward, sources, encoder)
        time_runs(clock, forward, encoder, settings, folder)
        if not index:
            clock = Clock()  # The first round warms up.
    row = clock.medians()
    row["sum of the steps"] = round(sum(row[step] for step in STEPS), 3)
    return {"model": name, "parameters": model.num_parameters(), "grey": grey, "ms_per_page": row}


def table(rows: list[dict[str, Any]]) -> str:
    names = [f"{row['model']}, {'grey' if row['grey'] else 'colour'}" for row in rows]
    lines = [f"| ms per page | {' | '.join(names)} |", "|---" * (len(rows) + 1) + "|"]
    for step in rows[0]["ms_per_page"]:
        lines.append(f"| {step} | " + " | ".join(f"{row['ms_per_page'][step]:.2f}" for row in rows) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="tiny")
    parser.add_argument("--count", type=int, default=32, help="number of pages")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        run = partial(measure, options=options, folder=Path(name))
        rows = [run(model, grey) for model in MODELS for grey in (True, False)]
    report = {
        "command": "python benchmarks/fixed_cost.py " + " ".join(sys.argv[1:]),
        "environment": environment(torch.device("cpu")),
        "mode": options.mode,
        "pages": options.count,
        "rows": rows,
    }
    (RESULTS / f"fixed_cost_{processor_slug()}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
