"""Generation with transformers' Unlimited-OCR, before and after `replace_vision_tower`.

    python benchmarks/vision_tower.py                       # pages of 640 and 1024 pixels, and one with six tiles
    python benchmarks/vision_tower.py --workloads 640 --rounds 3
    python benchmarks/vision_tower.py --dtype bfloat16

The vision tower has the published size, the language model two small layers, and all weights are random. Two models
with the same weights run in turns in one process. Peak memory is what `generate` adds to the loaded model, in a
process of its own. Results are written to benchmarks/results/.
"""

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, alternate, device_slug, environment, randomize, summarize
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from deepencoder import replace_vision_tower

IMAGE_TOKEN = 5
NEW_TOKENS = 8
TEXT = {
    "hidden_size": 1280,
    "intermediate_size": 2560,
    "moe_intermediate_size": 896,
    "num_hidden_layers": 2,
    "mlp_layer_types": ["dense", "sparse"],
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "vocab_size": 1024,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
WORKLOADS = {"640": (640, 0), "1024": (1024, 0), "1024, 6 tiles": (1024, 6)}
"""Side of the page, and number of tiles of 640 pixels."""


def build(dtype: torch.dtype) -> Any:
    config = UnlimitedOcrConfig(text_config=TEXT, image_token_id=IMAGE_TOKEN)
    config._attn_implementation = "sdpa"
    return randomize(UnlimitedOcrForConditionalGeneration(config)).to(dtype)


def make_inputs(name: str, dtype: torch.dtype) -> dict[str, Any]:
    side, tiles = WORKLOADS[name]
    generator = torch.Generator().manual_seed(1)
    rows, columns, tile_rows = side // 64, 2, 10
    length = rows * (rows + 1) + 1
    inputs: dict[str, Any] = {
        "pixel_values": torch.randn(1, 3, side, side, generator=generator).to(dtype),
        "num_local_patches": [tiles],
        "patches_grid": [[columns, tiles // columns] if tiles else [1, 1]],
    }
    if tiles:
        inputs["pixel_values_local"] = torch.randn(tiles, 3, 640, 640, generator=generator).to(dtype)
        length += tiles // columns * tile_rows * (columns * tile_rows + 1)
    input_ids = torch.tensor([[2, 3, *[IMAGE_TOKEN] * length, 7]])
    return inputs | {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def generate(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)


def status_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory_here(which: str, name: str, dtype: torch.dtype) -> dict[str, int]:
    """Return what the replacement and what generation add to the loaded model at their peaks, in this process."""
    model, found = build(dtype), {}
    if which == "ours":
        Path("/proc/self/clear_refs").write_text("5")  # Reset the peak.
        before = status_bytes("VmRSS")
        replace_vision_tower(model)
        found["replacement_peak_bytes"] = status_bytes("VmHWM") - before
        found["replacement_bytes"] = status_bytes("VmRSS") - before
    with torch.inference_mode():
        model.model.vision_tower(torch.zeros(1, 3, 64, 64, dtype=dtype))  # Libraries allocate some memory once.
        inputs = make_inputs(name, dtype)
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
        generate(model, inputs)
    return found | {"peak_bytes": status_bytes("VmHWM") - before}


def memory(which: str, name: str, dtype: str) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory-of", which, name, "--dtype", dtype]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


@torch.inference_mode()
def measure(models: dict[str, Any], name: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    inputs = make_inputs(name, dtype)
    times = alternate(
        {which: lambda which=which: generate(models[which], inputs) for which in models}, rounds, torch.device("cpu")
    )
    ids = [generate(model, inputs) for model in models.values()]
    logits = [model(**inputs, logits_to_keep=1).logits.double() for model in models.values()]
    row: dict[str, Any] = {which: summarize(values) for which, values in times.items()}
    row["speedup"] = round(row["stock"]["median_s"] / row["ours"]["median_s"], 3)
    row["same_ids"] = bool(torch.equal(*ids))
    row["largest_difference_of_logits"] = (logits[0] - logits[1]).abs().max().item()
    row["deviation_of_logits"] = logits[0].std().item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    if arguments.memory_of:
        print(json.dumps(memory_here(*arguments.memory_of, dtype)))
        return
    stock = build(dtype)
    models = {"stock": stock, "ours": replace_vision_tower(copy.deepcopy(stock))}
    rows = {}
    for name in arguments.workloads:
        rows[name] = measure(models, name, dtype, arguments.rounds)
        for which in models:
            rows[name][which] |= memory(which, name, arguments.dtype)
        print(name, json.dumps(rows[name]), flush=True)
    suffix = "" if arguments.dtype == "float32" else f"_{arguments.dtype}"
    result = {"environment": environment(torch.device("cpu")), "dtype": arguments.dtype, "new_tokens": NEW_TOKENS}
    (RESULTS / f"vision_tower_{device_slug()}{suffix}.json").write_text(
        json.dumps(result | {"pages": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
