"""Time and memory of DeepEncoderV2 against transformers' DeepseekOcr2VisionModel, at 768 and 1024, batch 1 and 4.

    python benchmarks/second_version.py --rounds 5
    python benchmarks/second_version.py --sides 768 --batches 1 --dtype bfloat16

Both models have the same random weights and run in turns in one process on the CPU. Peak memory is what a forward pass
adds to the loaded model, measured in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, alternate, device_slug, environment, randomize, summarize
from speed import relative_error, status_kilobytes
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2VisionConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2VisionModel

from deepencoder import DeepEncoderV2, DeepEncoderV2Config
from deepencoder.conversion.key_mapping import convert_state_dict
from deepencoder.conversion.key_tables import DEEPENCODER_V2_TRANSFORMERS

QUERIES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def build(which: str) -> Any:
    """Build a model of the published sizes: `"peer"` (transformers' with SDPA) or `"ours"`."""
    config = DeepEncoderV2Config()
    if which == "ours":
        return DeepEncoderV2(config).eval()
    query = {name: getattr(config.query_config, name) for name in QUERIES}
    query["rope_parameters"] = dict(config.query_config.rope_parameters)
    peer_config = DeepseekOcr2VisionConfig(encoder_config=query, attn_implementation="sdpa")
    return randomize(DeepseekOcr2VisionModel(peer_config))


def build_both() -> dict[str, Any]:
    """Build both with the same weights. Our projector and separator, which the peer lacks, keep their own."""
    torch.manual_seed(0)
    models = {which: build(which) for which in ("peer", "ours")}
    state_dict = {f"vision_tower.{name}": tensor for name, tensor in models["peer"].state_dict().items()}
    converted, unused = convert_state_dict(state_dict, DEEPENCODER_V2_TRANSFORMERS, models["ours"].state_dict())
    missing = models["ours"].load_state_dict(converted, strict=False).missing_keys
    if unused or any(not name.startswith(("projector.", "view_separator")) for name in missing):
        raise RuntimeError(f"the weights do not fit: missing {missing}, unused {unused}")
    return models


def make_pages(side: int, batch: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def memory_here(which: str, side: int, batch: int, dtype: torch.dtype) -> int:
    """Return the bytes by which the peak memory of a forward pass exceeds the loaded model, in this process."""
    model, pages = build(which).to(dtype), make_pages(side, batch, dtype)
    with torch.inference_mode():
        Path("/proc/self/clear_refs").write_text("5")  # Reset the peak.
        before = status_kilobytes("VmRSS")
        model(pages)
    return (status_kilobytes("VmHWM") - before) * 1024


def measure(models: dict[str, Any], side: int, batch: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    pages = make_pages(side, batch, dtype)
    found: dict[str, torch.Tensor] = {}
    calls = {
        which: lambda which=which: found.__setitem__(which, models[which](pages).last_hidden_state) for which in models
    }
    times = alternate(calls, rounds, torch.device("cpu"))
    row: dict[str, Any] = {"side": side, "batch": batch}
    name = str(dtype).removeprefix("torch.")
    for which in models:
        command = [sys.executable, __file__, "--memory-of", which, str(side), str(batch), name]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row[which] = {**summarize(times[which]), "peak_bytes": json.loads(answer.stdout)}
    row["speedup"] = row["peer"]["median_s"] / row["ours"]["median_s"]
    row["relative_difference"] = relative_error([found["ours"]], [found["peer"]])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="*", type=int, default=[768, 1024])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="[default: results/second_version_PROCESSOR_DTYPE.json]")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        which, side, batch, name = options.memory_of
        print(memory_here(which, int(side), int(batch), getattr(torch, name)))
        return
    dtype, device = getattr(torch, options.dtype), torch.device("cpu")
    models = {which: model.to(dtype) for which, model in build_both().items()}
    report: dict[str, Any] = {"environment": environment(device), "dtype": options.dtype, "rows": []}
    with torch.inference_mode():
        for side in options.sides:
            for batch in options.batches:
                report["rows"].append(measure(models, side, batch, dtype, options.rounds))
                print(json.dumps(report["rows"][-1]), flush=True)
    output = options.output or RESULTS / f"second_version_{device_slug(device)}_{options.dtype}.json"
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
