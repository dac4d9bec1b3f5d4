"""What the benchmarks share: the models, timing, and the description of the machine."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from processors import processor_slug
from torch import nn
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrVisionConfig
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrVisionModel

from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.conversion.key_mapping import convert_state_dict
from deepencoder.conversion.key_tables import DEEPENCODER_UNLIMITED_OCR_VISION
from deepencoder.runtimes.trials.operations import count_operations

RESULTS = Path(__file__).parent / "results"


def randomize(model: nn.Module) -> nn.Module:
    """Give every parameter seeded random values that keep activations near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
                continue
            deviation = parameter[0].numel() ** -0.5 if parameter.ndim == 4 else 0.1 if "rel_pos" in name else 0.02
            parameter.normal_(std=deviation, generator=generator)
    return model.eval()


def build(which: str) -> Any:
    """Build a model of the published sizes: `"peer"` (transformers' UnlimitedOcrVisionModel with SDPA) or `"ours"`."""
    if which == "peer":
        return randomize(UnlimitedOcrVisionModel(UnlimitedOcrVisionConfig(attn_implementation="sdpa")))
    return DeepEncoder(DeepEncoderConfig()).eval()


def build_both() -> tuple[Any, Any]:
    """Build the peer, and ours with the same weights. Our projector, which the peer lacks, keeps its own."""
    torch.manual_seed(0)
    peer, ours = build("peer"), build("ours")
    converted, unused = convert_state_dict(peer.state_dict(), DEEPENCODER_UNLIMITED_OCR_VISION, ours.state_dict())
    missing = ours.load_state_dict(converted, strict=False).missing_keys
    expected = {"image_newline", "view_separator", "projector.layers.0.weight", "projector.layers.0.bias"}
    if unused or set(missing) != expected:
        raise RuntimeError(f"the weights do not fit: missing {missing}, unused {unused}")
    return peer, ours


def counted_operations(height: int, width: int) -> float:
    """Count the operations of one view of the published model, a multiply-add as 2."""
    return count_operations(DeepEncoderConfig(), height, width)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def alternate(functions: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time functions in turns, after one warm-up round, so that a machine that slows down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            elapsed = seconds(function, device)
            if index:
                times[name].append(elapsed)
    return times


def summarize(times: list[float]) -> dict[str, Any]:
    """Return the median and the spread: the slowest minus the fastest time, relative to the median."""
    median = statistics.median(times)
    return {"median_s": round(median, 5), "spread": round((max(times) - min(times)) / median, 3), "runs": len(times)}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the machine's rate of large matrix products, in operations per second: the best of ten."""
    side = 8192 if device.type == "cuda" else 4096
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


def processor_name() -> str:
    try:
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def device_slug(device: torch.device | None = None) -> str:
    """Return a short name of the device for names of files: of its processor, if it is the CPU or None."""
    if device is None or device.type == "cpu":
        return processor_slug()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def environment(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the library versions of a measurement."""
    names = ("torch", "transformers", "torchao", "numpy", "pillow")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "date": time.strftime("%Y-%m-%d"),
    }
