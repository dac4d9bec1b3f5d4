"""What starting costs: importing the package, and loading the model, against the least that either could take.

    python benchmarks/startup.py [--rounds 5]

Importing is timed in fresh processes, beyond torch and transformers. Reading is that of the file's bytes into memory,
from the system's cache. Loading maps the file: it is timed as such, and with each weight used once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, environment

from deepencoder import DeepEncoder, DeepEncoderConfig

IMPORT = """
import time, torch, transformers
start = time.perf_counter()
import deepencoder
print(time.perf_counter() - start)
"""


def median(function: Callable[[], float], rounds: int) -> float:
    return statistics.median(function() for _ in range(rounds))


def import_seconds() -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)


def read_seconds(path: Path) -> float:
    start = time.perf_counter()
    path.read_bytes()
    return time.perf_counter() - start


def load_seconds(folder: Path, use: bool) -> float:
    start = time.perf_counter()
    model = DeepEncoder.from_pretrained(folder)
    for parameter in model.parameters() if use else ():
        parameter.sum()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    import_seconds()
    report = {"environment": environment(torch.device("cpu")), "import_s": median(import_seconds, rounds)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        DeepEncoder(DeepEncoderConfig()).save_pretrained(folder)
        weights = folder / "model.safetensors"
        read_seconds(weights)
        load_seconds(folder, use=True)
        report["read_s"] = median(lambda: read_seconds(weights), rounds)
        report["load_s"] = median(lambda: load_seconds(folder, use=False), rounds)
        report["load_and_use_s"] = median(lambda: load_seconds(folder, use=True), rounds)
    (RESULTS / "startup.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"import deepencoder, beyond torch and transformers: {report['import_s']:.2f} s")
    print(f"read the weights' file: {report['read_s']:.2f} s")
    print(f"load the model: {report['load_s']:.2f} s, and use each weight: {report['load_and_use_s']:.2f} s")


if __name__ == "__main__":
    main()
