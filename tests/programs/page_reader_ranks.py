"""Trains examples/vision_language_model.py on two processes, whose pages have different numbers of tiles.

Exits with 0 if two steps of DistributedDataParallel give the gradients that one process computes for both batches.
"""

import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from examples.vision_language_model import IMAGE_TOKEN, make_tiny_reader

# A page of 6 tiles and one without; two pages without tiles.
SIZES = [[(192, 128), (60, 40)], [(40, 60), (50, 50)]]


def make_batch(processor: Any, rank: int) -> dict[str, Any]:
    torch.manual_seed(rank)
    pages = [Image.fromarray(torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy()) for size in SIZES[rank]]
    fields = {"size": {"height": 128, "width": 128}, "tile_size": 64, "crop_to_patches": True, "max_patches": 6}
    for name, value in fields.items():
        setattr(processor.image_processor, name, value)
    inputs = processor(pages, [f"{IMAGE_TOKEN} read"] * 2)
    return {**inputs, "labels": inputs["input_ids"]}


def compute_gradients(model: Any, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss in the second of two steps, as some errors only appear there."""
    for _ in range(2):
        model.zero_grad()
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()
    return {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}


def run_rank(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, processor = make_tiny_reader(["read"])
    gradients = compute_gradients(DistributedDataParallel(model), [make_batch(processor, rank)])
    torch.save(gradients, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, context = Path(name), multiprocessing.get_context("fork")
        ranks = [context.Process(target=run_rank, args=(rank, folder)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(1)
        torch.manual_seed(0)
        model, processor = make_tiny_reader(["read"])
        batches = [make_batch(processor, rank) for rank in range(2)]
        assert batches[0]["num_local_patches"].tolist() == [6, 0] and "pixel_values_local" not in batches[1]
        # Each rank averages over its own answers, and DistributedDataParallel averages over the ranks.
        expected = compute_gradients(model, batches)
        assert all(gradient is not None for gradient in expected.values())
        for rank in range(2):
            found = torch.load(folder / f"{rank}.pt", weights_only=True)
            for parameter, gradient in expected.items():
                torch.testing.assert_close(found[parameter], gradient, atol=1e-6, rtol=1e-3)


if __name__ == "__main__":
    main()
