"""Time and memory of a training step of the DeepEncoder against transformers' UnlimitedOcrVisionModel.

    python benchmarks/training_step.py                          # 512 and 1024 in float32, on a CPU
    python benchmarks/training_step.py --sides 1024 --rounds 5
    python benchmarks/training_step.py --what memory            # what was measured before stays in the file of results

A step is a forward pass of one page and a backward pass to all parameters, from the mean square of the fused tokens.
Both models have the same random weights and run in turns in one process, and their gradients are compared in the same
run. Gradients are kept between steps, so that no step allocates them. Peak memory is what a step adds to the loaded
model and its gradients, in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    RESULTS,
    alternate,
    build,
    build_both,
    counted_operations,
    environment,
    matrix_rate,
    summarize,
)
from processors import processor_slug
from speed import status_kilobytes

from deepencoder.conversion.key_mapping import convert_state_dict
from deepencoder.conversion.key_tables import DEEPENCODER_UNLIMITED_OCR_VISION

CPU = torch.device("cpu")


def make_step(model: Any, side: int, dtype: torch.dtype) -> Callable[[], Any]:
    """Return a function that computes the gradients of all parameters for one page."""
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model(pixels).last_hidden_state.float().square().mean().backward()

    return step


def memory_here(which: str, side: int, dtype: torch.dtype) -> int:
    """Return the bytes by which the peak memory of a step exceeds the model with its gradients, in this process."""
    model = build(which).to(dtype)
    make_step(model, 64, dtype)()  # Allocates the gradients, and what libraries allocate once.
    step = make_step(model, side, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # Reset the peak.
    before = status_kilobytes("VmRSS")
    step()
    return (status_kilobytes("VmHWM") - before) * 1024


def memory(which: str, side: int, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--memory-of", which, "--sides", str(side), "--dtype", options.dtype]
    command += ["--threads", str(options.threads)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def gradient_difference(models: dict[str, Any]) -> float:
    """Return the largest difference of the gradients of a parameter, relative to its gradient in the peer."""
    theirs = {name: parameter.grad for name, parameter in models["peer"].named_parameters()}
    expected, _ = convert_state_dict(theirs, DEEPENCODER_UNLIMITED_OCR_VISION, models["ours"].state_dict())
    ours = dict(models["ours"].named_parameters())
    # Keys have no gradient from their bias but rounding: the softmax removes what all scores have in common.
    return max(
        ((ours[name].grad - gradient).norm() / gradient.norm()).item()
        for name, gradient in expected.items()
        if not name.endswith(("qkv.bias", "qkv_proj.bias"))
    )


def measure_times(models: dict[str, Any], side: int, options: argparse.Namespace) -> dict[str, Any]:
    steps = {which: make_step(model, side, getattr(torch, options.dtype)) for which, model in models.items()}
    row: dict[str, Any] = {}
    for which, times in alternate(steps, options.rounds, CPU).items():
        row[which] = summarize(times)
    row["speedup"] = row["peer"]["median_s"] / row["ours"]["median_s"]
    row["gradient_difference"] = gradient_difference(models)
    return row


def measure(options: argparse.Namespace, rows: dict[str, Any]) -> None:
    """Measure what was asked for, and write it into the rows of the report, which are named by their side."""
    for side in options.sides:
        row = rows.setdefault(str(side), {"counted_gflop": 3 * counted_operations(side, side) / 1e9})
        if "memory" in options.what:
            row["peak_bytes"] = {which: memory(which, side, options) for which in ("ours", "peer")}
    if "time" in options.what:
        dtype = getattr(torch, options.dtype)
        models = dict(zip(("peer", "ours"), (model.to(dtype) for model in build_both()), strict=True))
        for side in options.sides:
            rows[str(side)] |= measure_times(models, side, options)


def table(rows: dict[str, Any]) -> str:
    lines = ["| side | ours: median (spread), memory | transformers | faster | difference of gradients |"]
    lines.append("|---|---|---|---|---|")
    for side, row in sorted(rows.items(), key=lambda item: int(item[0])):
        cells = [side]
        for which in ("ours", "peer"):
            timed, peak = row.get(which), row.get("peak_bytes")
            time = f"{timed['median_s']:.2f} s ({100 * timed['spread']:.0f} %)" if timed else "-"
            cells.append(time + (f", {peak[which] / 1e9:.2f} GB" if peak else ""))
        if "speedup" in row:
            cells += [f"{row['speedup']:.2f}x", f"{row['gradient_difference']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="*", type=int, default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--what", nargs="*", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--memory-of", choices=["peer", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(memory_here(options.memory_of, options.sides[0], getattr(torch, options.dtype)))
        return
    suffix = "" if options.dtype == "float32" else f"_{options.dtype}"
    suffix += "" if options.threads > 1 else "_1_thread"
    path = RESULTS / f"training_step_{processor_slug()}{suffix}.json"
    report = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    report |= {
        "command": "python benchmarks/training_step.py " + " ".join(sys.argv[1:]),
        "environment": environment(CPU),
        "dtype": options.dtype,
    }
    if "time" in options.what:
        report["matrix_operations_per_s"] = matrix_rate(CPU, getattr(torch, options.dtype))
    measure(options, report["rows"])
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report["rows"]))


if __name__ == "__main__":
    main()
