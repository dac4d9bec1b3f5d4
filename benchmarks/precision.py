"""Which precision is fastest on which processor: a page at 640 in float32, bfloat16 and float16.

    python benchmarks/precision.py [--rounds 3] [--side 640]

To imitate processors without AMX, oneDNN is also limited to older instruction sets, each in a process of its own. The
kernels of torch itself and of MKL may still use newer instructions, so that such a processor can be slower than shown.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
from functools import partial

import torch
from common import RESULTS, alternate, build, device_slug, environment, summarize

DTYPES = ("float32", "bfloat16", "float16")
ALL = "all of this machine"
INSTRUCTIONS = (ALL, "AVX512_CORE_BF16", "AVX512_CORE", "AVX2")


def measure(side: int, rounds: int) -> dict[str, dict[str, float]]:
    model = build("ours")
    models = {name: copy.deepcopy(model).to(getattr(torch, name)) for name in DTYPES}
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        calls = {name: partial(model, pixels) for name, model in models.items()}
        return {name: summarize(times) for name, times in alternate(calls, rounds, torch.device("cpu")).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.side, options.rounds)))
        return
    numbers = ["--side", str(options.side), "--rounds", str(options.rounds)]
    rows = {}
    for name in INSTRUCTIONS:
        limit = {} if name == ALL else {"ONEDNN_MAX_CPU_ISA": name}
        command = [sys.executable, __file__, "--here", *numbers]
        answer = subprocess.run(command, env=os.environ | limit, stdout=subprocess.PIPE, check=True, text=True)
        rows[name] = json.loads(answer.stdout.splitlines()[-1])
    report = {"environment": environment(torch.device("cpu")), "side": options.side, "rows": rows}
    (RESULTS / f"precision_{device_slug()}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"| oneDNN's instructions | {' | '.join(DTYPES)} |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[dtype]['median_s']:.2f} s" for dtype in DTYPES) + " |")


if __name__ == "__main__":
    main()
