"""Throughput of our image processor and of transformers' Pillow one for DeepSeek-OCR-2, in alternation.

    python benchmarks/image_processing.py [--pages PAGE ...] [--rounds 9] [--output FILE.json]

Both processors take decoded pages and return float32 tensors of the same views: the page padded to 1024 pixels,
without tiles ("base") and with up to nine tiles of 640 pixels ("gundam"). The same run compares their pixels as bytes,
before normalisation. The peer rounds half a pixel of padding down where we, like Pillow, round to even, so the views
of some pages are shifted by one pixel, which the table shows. With several threads, each thread calls the same
processor with a page of its own.
"""

import argparse
import json
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import DeepseekOcr2ImageProcessorPil

from deepencoder import DeepEncoderImageProcessor

PAGES = sorted((Path(__file__).parents[1] / "examples").glob("[!e]*.png"))
OUTPUT = Path(__file__).parent / "results" / "image_processing.json"
NOISE = (2480, 3508)  # The size of an A4 page at 300 dpi; the content of a page does not affect the time.
PEERS = {
    "base": DeepseekOcr2ImageProcessorPil(crop_to_patches=False, tile_size=1024),
    "gundam": DeepseekOcr2ImageProcessorPil(crop_to_patches=True, tile_size=640, max_patches=9),
}
THREADS = (1, 2)
CALLS = 3  # Calls per thread and round.
VIEWS = ("pixel_values", "pixel_values_local")


def pages_per_second(processor: Any, page: Image.Image, pool: ThreadPoolExecutor, threads: int) -> float:
    pages = [page.copy() for _ in range(threads)]

    def call(own: Image.Image) -> None:
        for _ in range(CALLS):
            processor(own, return_tensors="pt")

    start = time.perf_counter()
    list(pool.map(call, pages))
    return threads * CALLS / (time.perf_counter() - start)


def compare(ours: Any, peer: Any, page: Image.Image) -> dict[str, str]:
    """Say for each kind of view how the bytes of both processors compare."""
    raw = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    expected, found = ours(page, **raw), peer(page, **raw)
    result = {}
    for name in VIEWS:
        if name not in expected and name not in found:
            continue
        if np.array_equal(expected[name], found[name]):
            result[name] = "equal"
        elif any(np.array_equal(expected[name], np.roll(found[name], 1, axis)) for axis in (-1, -2)):
            result[name] = "one pixel off"
        else:
            result[name] = f"{(expected[name] != found[name]).mean():.1%} differ"
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


def measure(ours: Any, peer: Any, page: Image.Image, threads: int, rounds: int) -> dict[str, Any]:
    """Time both processors in alternation; the first round only warms up."""
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds + 1):
            for key, processor in (("ours", ours), ("peer", peer)):
                rate = pages_per_second(processor, page, pool, threads)
                if number:
                    rates[key].append(rate)
    ratios = [a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)]
    return {key: spread(values) for key, values in rates.items()} | {"ratio": spread(ratios)}


def print_row(row: dict[str, Any]) -> None:
    cells = [row["page"], f"{row['width']} x {row['height']}", row["mode"], str(row["threads"])]
    cells += ["{median:.1f} ({min:.1f} to {max:.1f})".format(**row[key]) for key in ("ours", "peer")]
    cells.append("{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"]))
    cells += [row["same_pixels"].get(name, "") for name in VIEWS]
    print("|", " | ".join(cells), "|")


def run(pages: dict[str, Image.Image], rounds: int) -> list[dict[str, Any]]:
    print("| page | size | mode | threads | ours, pages/s | peer, pages/s | ratio | views | tiles |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for mode, peer in PEERS.items():
        ours = DeepEncoderImageProcessor(mode=mode)
        for name, page in pages.items():
            same = compare(ours, peer, page)
            for threads in THREADS:
                row = {"page": name, "width": page.width, "height": page.height, "mode": mode, "threads": threads}
                rows.append(row | measure(ours, peer, page, threads, rounds) | {"same_pixels": same})
                print_row(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    load = os.getloadavg()
    torch.set_num_threads(1)  # Neither processor uses threads of torch; the callers are the threads.
    pages = {path.name: Image.open(path).convert("RGB") for path in options.pages}
    noise = np.random.default_rng(0).integers(0, 256, (NOISE[1], NOISE[0], 3), dtype=np.uint8)
    pages["noise"] = Image.fromarray(noise)
    rows = run(pages, options.rounds)
    result = {
        "unit": "pages per second; median, lowest and highest round",
        "rounds": options.rounds,
        "calls_per_thread_and_round": CALLS,
        "peer": DeepseekOcr2ImageProcessorPil.__name__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_average_before_and_after": [round(load[0], 2), round(os.getloadavg()[0], 2)],
        "versions": {name: version(name) for name in ("numpy", "pillow", "torch", "transformers")},
        "results": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print("\n" + ", ".join(f"{name} {number}" for name, number in result["versions"].items()), "->", options.output)


if __name__ == "__main__":
    main()
