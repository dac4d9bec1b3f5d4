"""Measures what extraction costs beside the model: pages per second from files to shards, against the bare forward.

    python benchmarks/extraction.py [--pages FILE ...] [--count 8] [--rounds 3] [--workers 1] [--mode base]

Both run on the same pages, half of them JPEGs and half pages of a PDF, with a model of the published size and random
weights. They alternate in one process and use the same batch size. The pixels of the bare forward are on the device
before it starts. Writing the same features is timed separately.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, build, device_slug, environment, randomize, seconds, summarize
from PIL import Image

from deepencoder import DeepEncoderImageProcessor
from deepencoder.extraction import (
    OUTPUTS,
    ExtractionSettings,
    PageEncoder,
    RunOptions,
    extract_features,
    iterate_features,
    list_pages,
    load_page,
)
from deepencoder.extraction.batching import BatchBudget
from deepencoder.extraction.preparation import prepare_image
from deepencoder.extraction.shard_writer import ShardWriter

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[!e]*.png"))


def make_corpus(folder: Path, pages: list[Path], count: int) -> tuple[str, ...]:
    """Save `count` pages, half of them as JPEGs and half in one PDF."""
    images = [Image.open(pages[number % len(pages)]).convert("RGB") for number in range(count)]
    jpegs = count // 2
    for number, image in enumerate(images[:jpegs]):
        image.save(folder / f"{number:03d}.jpg", quality=90)
    images[jpegs].save(folder / "pages.pdf", save_all=True, append_images=images[jpegs + 1 :], resolution=150)
    return (str(folder),)


def measure_writing(rows: list[Any], settings: ExtractionSettings, encoder: PageEncoder, folder: Path) -> float:
    """Return the seconds that it takes to write pages as one shard."""
    folder.mkdir(parents=True)
    start = time.perf_counter()
    writer = ShardWriter(folder, encoder.schema, settings, RunOptions())
    for row in rows:
        writer.add(row)
    writer.close()
    return time.perf_counter() - start


def measure(options: argparse.Namespace, encoder: PageEncoder, folder: Path) -> dict[str, Any]:
    """Time the bare forward, the whole extraction and the writing, and return what was measured, per page."""
    (folder / "corpus").mkdir()
    sources = make_corpus(folder / "corpus", options.pages, options.count)
    settings = ExtractionSettings(sources, "random", "0", options.mode, outputs=tuple(OUTPUTS))
    pages, model, processor, device = list(list_pages(sources)), encoder.model, encoder.image_processor, encoder.device
    largest = max(prepare_image(load_page(page), processor).pixels for page in pages)
    batch_size = max(1, encoder.budget.pixels // largest)
    run_options = RunOptions(workers=options.workers, batch_size=batch_size)
    ready = [
        processor([load_page(page) for page in pages[start : start + batch_size]], return_tensors="pt").to(device)
        for start in range(0, len(pages), batch_size)
    ]

    def forward() -> None:
        for inputs in ready:
            model(**inputs)

    def extract(output: Path) -> None:
        summary = extract_features(settings, output, lambda: (model, processor), run_options)
        if summary.written != len(pages):
            raise RuntimeError(f"{summary.written} of {len(pages)} pages were written")

    model(**ready[0])
    bare, whole = [], []
    for index in range(options.rounds):
        bare.append(seconds(forward, device) / len(pages))
        whole.append(seconds(partial(extract, folder / f"output-{index}"), device) / len(pages))
    encoder.budget = BatchBudget(batch_size, device)
    rows = list(iterate_features(pages, encoder, workers=options.workers))
    writing = [
        measure_writing(rows, settings, encoder, folder / f"written-{index}") / len(rows)
        for index in range(options.rounds)
    ]
    return {
        "pages": len(pages),
        "batch_size": batch_size,
        "bare_forward": summarize(bare),
        "extraction": summarize(whole),
        "writing": summarize(writing),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="*", type=Path, default=EXAMPLES)
    on_cuda = torch.cuda.is_available()
    parser.add_argument("--count", type=int, default=512 if on_cuda else 8, help="number of pages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2) if on_cuda else 1)
    parser.add_argument("--mode", default="base")
    parser.add_argument("--device", default="cuda" if on_cuda else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on CUDA")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    device = torch.device(options.device)
    default = "bfloat16" if device.type == "cuda" else "float32"
    dtype = options.dtype or default
    model = randomize(build("ours")).to(device, getattr(torch, dtype))
    encoder = PageEncoder(model, DeepEncoderImageProcessor(mode=options.mode))
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        measured = measure(options, encoder, Path(name))
    bare, whole, writing = (measured[name]["median_s"] for name in ("bare_forward", "extraction", "writing"))
    report: dict[str, Any] = {
        "environment": environment(device),
        "mode": options.mode,
        "dtype": dtype,
        "workers": options.workers,
        **measured,
        "throughput_of_bare": bare / whole,
        "writing_share": writing / whole,
    }
    suffix = "" if dtype == default else f"_{dtype}"
    (RESULTS / f"extraction_{device_slug(device)}{suffix}.json").write_text(json.dumps(report, indent=2) + "\n")
    for what in ("bare_forward", "extraction", "writing"):
        print(f"{what:13} {report[what]['median_s']:.4f} s per page, spread {100 * report[what]['spread']:.0f} %")
    print(f"extraction reaches {100 * report['throughput_of_bare']:.1f} % of the bare forward's throughput")
    print(f"writing all outputs takes {100 * report['writing_share']:.2f} % of its time")


if __name__ == "__main__":
    main()
