"""Time and memory of the DeepEncoder against transformers' UnlimitedOcrVisionModel, by size, batch and tiles.

    python benchmarks/speed.py                          # everything, on a CPU in float32 or on CUDA in bfloat16
    python benchmarks/speed.py --sides 1024 --rounds 3  # one size
    python benchmarks/speed.py --int8                   # also int8 weights by torchao, eager and compiled
    python benchmarks/speed.py --dtype bfloat16         # both models in bfloat16, on a CPU
    python benchmarks/speed.py --peers --rounds 2       # everything else that computes the model, on a CPU
    python benchmarks/speed.py --peers OpenVINO llama --pages 1024 --precisions bfloat16 --threads 1 2

Both models have the same random weights and run in turns in one process, and their outputs are compared in the same
run. Peak memory is what a forward pass adds to the loaded model; on a CPU it is measured in a process of its own.

With `--peers` each contender runs in a process of its own, in turns: see `benchmarks/peers`. `make llama.cpp` builds
llama.cpp; what is not installed is left out and named. Results are kept in one file for each kind of processor.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    RESULTS,
    alternate,
    build,
    build_both,
    counted_operations,
    device_slug,
    environment,
    matrix_rate,
    summarize,
)
from peers.report import add_options, run_comparison

Model = Callable[..., Any]


class Workload(NamedTuple):
    """`batch` pages of `side` x `side` pixels, each with `tiles` tiles of 640 x 640."""

    side: int
    batch: int = 1
    tiles: int = 0

    @property
    def name(self) -> str:
        return f"{self.side}" + f", {self.tiles} tiles" * bool(self.tiles) + f", batch {self.batch}" * (self.batch > 1)

    @property
    def operations(self) -> float:
        return self.batch * (counted_operations(self.side, self.side) + self.tiles * counted_operations(640, 640))

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        pixels = {"pixel_values": torch.randn(self.batch, 3, self.side, self.side, generator=generator)}
        if self.tiles:
            pixels["pixel_values_local"] = torch.randn(self.batch * self.tiles, 3, 640, 640, generator=generator)
        return {name: values.to(device, dtype) for name, values in pixels.items()}


def run(which: str, model: Model, workload: Workload, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the fused tokens of the pages and of their tiles. The peer is called for each of the two."""
    if which == "peer":
        return [model(pixels).last_hidden_state for pixels in inputs.values()]
    if not workload.tiles:
        return [model(**inputs).last_hidden_state]
    output = model(**inputs, patches_grid=[(workload.tiles, 1)] * workload.batch)
    return [output.last_hidden_state, output.local_last_hidden_state]


def status_kilobytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def available_bytes() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def cpu_memory_here(which: str, workload: Workload, dtype: torch.dtype) -> float:
    """Return the bytes by which the peak memory of a forward pass exceeds the loaded model, in this process."""
    model = build(which).to(dtype)
    inputs = workload.inputs(torch.device("cpu"), dtype)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64, dtype=dtype))  # Libraries allocate some memory once.
        Path("/proc/self/clear_refs").write_text("5")  # Reset the peak.
        before = status_kilobytes("VmRSS")
        run(which, model, workload, inputs)
    return (status_kilobytes("VmHWM") - before) * 1024


def cpu_memory(which: str, workload: Workload, dtype: torch.dtype) -> float | None:
    """Return [`cpu_memory_here`] from a process of its own, or None if the memory of the machine is too small."""
    command = [sys.executable, __file__, "--memory-of", which, str(dtype).removeprefix("torch."), *map(str, workload)]
    limit = available_bytes()

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    answer = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=limit_memory, text=True)
    return json.loads(answer.stdout) if answer.returncode == 0 else None


def cuda_memory(which: str, model: Model, workload: Workload, inputs: dict[str, torch.Tensor]) -> float | None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        run(which, model, workload, inputs)
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated() - before


def relative_error(values: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = [(ours.double(), theirs.double()) for ours, theirs in zip(values, expected, strict=True)]
    return max(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs)


def measure(
    models: dict[str, Any], workload: Workload, rounds: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    inputs = workload.inputs(device, dtype)
    row: dict[str, Any] = {**workload._asdict(), "name": workload.name, "counted_gflop": workload.operations / 1e9}
    for which in models:
        on_cuda = device.type == "cuda"
        peak = cuda_memory(which, models[which], workload, inputs) if on_cuda else cpu_memory(which, workload, dtype)
        row[which] = {"peak_bytes": peak}
    fitting = {which: model for which, model in models.items() if row[which]["peak_bytes"] is not None}
    results: dict[str, list[torch.Tensor]] = {}

    def call(which: str) -> Callable[[], None]:
        return lambda: results.__setitem__(which, run(which, fitting[which], workload, inputs))

    for which, times in alternate({which: call(which) for which in fitting}, rounds, device).items():
        row[which] |= summarize(times)
        row[which]["operations_per_s"] = workload.operations / row[which]["median_s"]
    if len(fitting) == 2:
        row["speedup"] = row["peer"]["median_s"] / row["ours"]["median_s"]
        row["relative_difference"] = relative_error(results["ours"], results["peer"])
    return row


def measure_int8(peer: Any, ours: Any, rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Time int8 weights and activations at 1024, eager and compiled, in this dtype and in bfloat16."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    workload = Workload(1024)
    inputs = {dtype: workload.inputs(device, dtype), torch.bfloat16: workload.inputs(device, torch.bfloat16)}
    expected = run("ours", ours, workload, inputs[dtype])[0].float()
    calls: dict[str, Callable[[], Any]] = {"peer": lambda: peer(**inputs[dtype])}
    for precision, pixels in inputs.items():
        quantized = copy.deepcopy(ours).to(precision)
        quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
        compiled = copy.deepcopy(quantized)
        compiled.compile()
        name = f"int8, {str(precision).removeprefix('torch.')}"
        calls[name] = lambda model=quantized, pixels=pixels: model(**pixels)
        calls[f"{name}, compiled"] = lambda model=compiled, pixels=pixels: model(**pixels)
    times = alternate(calls, rounds, device)
    row: dict[str, Any] = {name: summarize(runs) for name, runs in times.items()}
    for name in list(calls)[1:]:
        tokens = calls[name]().last_hidden_state.float()
        row[name]["speedup"] = row["peer"]["median_s"] / row[name]["median_s"]
        row[name]["lowest_cosine"] = torch.cosine_similarity(tokens, expected, dim=-1).min().item()
    return row


def measure_latency(peer: Any, ours: Any, rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Time one page at 1024 in CUDA graphs, made by `model.compile(mode="reduce-overhead")`."""
    inputs = Workload(1024).inputs(device, dtype)
    compiled = copy.deepcopy(ours)
    compiled.compile(mode="reduce-overhead")
    functions = {"peer": peer, "ours": ours, "ours in CUDA graphs": compiled}
    times = alternate({name: lambda model=model: model(**inputs) for name, model in functions.items()}, rounds, device)
    row: dict[str, Any] = {name: summarize(runs) for name, runs in times.items()}
    row["speedup"] = row["peer"]["median_s"] / row["ours in CUDA graphs"]["median_s"]
    return row


def measure_accuracy(models: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return the relative error of the fused tokens in half precision, against the peer in float32."""
    workload = Workload(1024)
    exact = run("peer", copy.deepcopy(models["peer"]).float(), workload, workload.inputs(device, torch.float32))
    inputs = workload.inputs(device, dtype)
    return {which: relative_error(run(which, model, workload, inputs), exact) for which, model in models.items()}


def table(report: dict[str, Any]) -> str:
    def cell(measured: dict[str, Any]) -> str:
        if measured["peak_bytes"] is None:
            return "does not fit"
        spread = f"{100 * measured['spread']:.0f} %"
        return f"{measured['median_s']:.3f} s ({spread}), {measured['peak_bytes'] / 1e9:.2f} GB"

    lines = ["| pages | ours: median (spread), memory | peer | faster | share of the matrix rate | difference |"]
    lines.append("|---|---|---|---|---|---|")
    for row in report["rows"]:
        share = row["ours"]["operations_per_s"] / report["matrix_operations_per_s"]
        faster = f"{row['speedup']:.2f}x" if "speedup" in row else ""
        difference = f"{row['relative_difference']:.1e}" if "speedup" in row else ""
        cells = (row["name"], cell(row["ours"]), cell(row["peer"]), faster, f"{100 * share:.0f} %", difference)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Plot seconds and memory of a page over its side, for single pages without tiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (time_axis, memory_axis) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for which, label, color in (("peer", "transformers' Unlimited-OCR", "0.55"), ("ours", "DeepEncoder", "tab:blue")):
        rows = [row for row in report["rows"] if row["batch"] == 1 and not row["tiles"] and "median_s" in row[which]]
        sides = [row["side"] for row in rows]
        style = {"marker": "o", "color": color, "label": label}
        time_axis.plot(sides, [row[which]["median_s"] for row in rows], **style)
        memory_axis.plot(sides, [row[which]["peak_bytes"] / 1e9 for row in rows], **style)
    for axis, title in ((time_axis, "seconds a page"), (memory_axis, "GB above the weights")):
        axis.set(title=title, xlabel="side of the page in pixels", ylim=(0, None))
        axis.grid(alpha=0.3)
    time_axis.legend(frameon=False)
    environment = report["environment"]
    figure.suptitle(f"{environment['device']}, {environment['threads']} threads, {report['dtype']}", fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_cuda else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="[default: bfloat16 on CUDA]")
    parser.add_argument("--sides", nargs="*", type=int, default=[512, 640, 1024, 1280, 1536, 2048])
    parser.add_argument("--batches", nargs="*", type=int, help="at 1024 [default: 2 4 on a CPU, 2 4 8 16 32 on CUDA]")
    parser.add_argument("--tiles", nargs="*", type=int, default=[6], help="tiles of 640 beside a page of 1024")
    parser.add_argument("--rounds", type=int, default=20 if on_cuda else 5)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--output", type=Path, help="without suffix [default: results/speed_PROCESSOR]")
    parser.add_argument(
        "--memory-of", nargs=5, metavar=("WHO", "DTYPE", "SIDE", "BATCH", "TILES"), help=argparse.SUPPRESS
    )
    add_options(parser)
    options = parser.parse_args()
    if options.peers is not None:
        run_comparison(options)
        return
    if options.memory_of:
        which, dtype_name, *numbers = options.memory_of
        print(cpu_memory_here(which, Workload(*map(int, numbers)), getattr(torch, dtype_name)))
        return

    device = torch.device(options.device)
    cuda = device.type == "cuda"
    default = "bfloat16" if cuda else "float32"
    dtype = getattr(torch, options.dtype or default)
    batches = options.batches if options.batches is not None else [2, 4, *([8, 16, 32] if cuda else [])]
    workloads = [Workload(side) for side in options.sides]
    workloads += [Workload(1024, batch) for batch in batches] + [Workload(1024, 1, tiles) for tiles in options.tiles]
    if cuda:
        workloads.append(Workload(640, 48))
    peer, ours = (model.to(device, dtype) for model in build_both())
    models = {"peer": peer, "ours": ours}
    report: dict[str, Any] = {
        "command": "python benchmarks/speed.py " + " ".join(sys.argv[1:]),
        "environment": environment(device),
        "dtype": str(dtype).removeprefix("torch."),
        "matrix_operations_per_s": matrix_rate(device, dtype),
        "rows": [],
    }
    with torch.inference_mode():
        for workload in workloads:
            report["rows"].append(measure(models, workload, options.rounds, device, dtype))
            print(table(report).splitlines()[-1], file=sys.stderr, flush=True)
        if cuda:
            report["latency"] = measure_latency(peer, ours, options.rounds, device, dtype)
        if dtype != torch.float32:
            report["relative_error_to_float32"] = measure_accuracy(models, device, dtype)
        if options.int8:
            report["int8"] = measure_int8(peer, ours, options.rounds, device, dtype)
    suffix = "" if report["dtype"] == default else f"_{report['dtype']}"
    output = options.output or RESULTS / f"speed_{device_slug(device)}{suffix}"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    if any(row["batch"] == 1 and not row["tiles"] for row in report["rows"]):
        plot(report, output.with_suffix(".png"))
    print(f"matrix products: {report['matrix_operations_per_s'] / 1e9:.0f} GFLOP/s\n\n{table(report)}")
    for name in ("latency", "relative_error_to_float32", "int8"):
        if name in report:
            print(f"\n{name}: {json.dumps(report[name])}")


if __name__ == "__main__":
    main()
