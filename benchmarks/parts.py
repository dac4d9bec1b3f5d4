"""Where the time of a page goes: seconds and share of each part of the DeepEncoder.

    python benchmarks/parts.py [--sides 640 1024] [--rounds 5] [--operators]

Parts are timed by hooks. On CUDA each hook waits for the device, so the sum of the parts exceeds the time of a page.
`--operators` also prints the torch operators that took longest.
"""

import argparse
import json
import time
from collections import defaultdict
from typing import Any

import torch
from common import RESULTS, build, counted_operations, device_slug, environment, matrix_rate, randomize, synchronize
from torch.profiler import profile

LINEARS = ("qkv", "proj", "qkv_proj", "out_proj")


def name_part(path: str, module: Any) -> str | None:
    """Return the part that the time of a module is counted for, or None if its children are counted instead."""
    encoder, _, inside = path.partition(".")
    if inside in ("embeddings", "neck", "compressor"):
        return f"{encoder}: {inside}"
    if path == "projector":
        return path
    if not inside.startswith("layers."):
        return None
    leaf = inside.split(".", 2)[-1]
    kind = f"{encoder}: "
    if hasattr(module, "window_size"):
        return kind + ("windowed attention" if module.window_size else "global attention")
    if leaf == "self_attn":
        return kind + "attention"
    if leaf.split(".")[-1] in LINEARS:
        return kind + "projections"  # Subtracted from the attention that it is in.
    return kind + "MLP" if leaf == "mlp" else None


def measure(model: Any, side: int, rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return the mean seconds of each part, and of the rest (norms, sums, copies)."""
    pixels = torch.randn(1, 3, side, side, device=device, dtype=dtype)
    spent: dict[str, float] = defaultdict(float)
    starts: list[float] = []
    open_parts: list[str] = []

    def begin(name: str) -> None:
        synchronize(device)
        open_parts.append(name)
        starts.append(time.perf_counter())

    def end() -> None:
        synchronize(device)
        elapsed = time.perf_counter() - starts.pop()
        spent[open_parts.pop()] += elapsed / rounds
        if open_parts:
            spent[open_parts[-1]] -= elapsed / rounds

    model(pixels)
    handles = []
    for path, module in model.named_modules():
        if name := name_part(path, module):
            handles.append(module.register_forward_pre_hook(lambda module, args, name=name: begin(name)))
            handles.append(module.register_forward_hook(lambda module, args, output: end()))
    for _ in range(rounds):
        begin("norms, sums, copies")
        model(pixels)
        end()
    for handle in handles:
        handle.remove()
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sides", nargs="*", type=int, default=[512, 640, 1024, 1280])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operators", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = randomize(build("ours")).to(device, dtype)
    rate = matrix_rate(device, dtype)
    report: dict[str, Any] = {"environment": environment(device), "matrix_operations_per_s": rate, "seconds": {}}
    with torch.inference_mode():
        for side in options.sides:
            parts = measure(model, side, options.rounds, device, dtype)
            report["seconds"][side] = parts
            whole = sum(parts.values())
            share = counted_operations(side, side) / whole / rate
            print(f"\n{side}: {whole:.3f} s, {100 * share:.0f} % of the matrix rate ({rate / 1e9:.0f} GFLOP/s)")
            for name, spent in parts.items():
                print(f"  {spent:8.4f} s  {100 * spent / whole:5.1f} %  {name}")
            if options.operators:
                with profile() as profiler:
                    model(torch.randn(1, 3, side, side, device=device, dtype=dtype))
                print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
    path = RESULTS / f"parts_{device_slug(device)}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
