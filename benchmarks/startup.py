"""Start-up times: importing the package and loading the model, compared with the least that either could take.

    python benchmarks/startup.py [--rounds 5]

The import is timed in fresh processes, after torch and transformers have been imported. For comparison, the bytes of
the weights' file are read into memory from the page cache. Loading maps the file into memory; it is timed by itself,
and together with using each weight once.
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
from common import RESULTS, device_slug, environment

from deepencoder import DeepEncoder, DeepEncoderConfig

IMPORT_PROGRAM = Path(__file__).parent / "programs" / "import_package.py"


def median(function: Callable[[], float], rounds: int) -> float:
    return statistics.median(function() for _ in range(rounds))


def import_seconds() -> float:
    return float(subprocess.run([sys.executable, IMPORT_PROGRAM], capture_output=True, text=True, check=True).stdout)


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
    import_seconds()  # Fills the page cache.
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
    (RESULTS / f"startup_{device_slug()}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"Importing deepencoder, after torch and transformers: {report['import_s']:.2f} s")
    print(f"Reading the weights' file: {report['read_s']:.2f} s")
    print(f"Loading the model: {report['load_s']:.2f} s")
    print(f"Loading the model and using each weight: {report['load_and_use_s']:.2f} s")


if __name__ == "__main__":
    main()
