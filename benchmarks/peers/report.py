"""The run behind `python benchmarks/speed.py --peers`: which rows are measured, and the file that keeps them.

Unusual: one file holds all results of one kind of processor. A run replaces only the groups (page, precision, threads)
that it measured, whole, so that the rows of a group always come from one run. Each row says from which.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment
from processors import processor_slug

from deepencoder.configuration.atomic_files import write_text

from .comparison import choose, compare
from .contenders import ANCHORS, versions
from .workloads import WORKLOADS

GROUP = ("workload", "precision", "threads")


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --peers, on a CPU")
    group.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help="compare with everything else; only contenders whose name has a NAME",
    )
    group.add_argument("--pages", nargs="+", choices=WORKLOADS, default=["640", "1024", "gundam"])
    group.add_argument("--precisions", nargs="+", choices=ANCHORS, default=["float32", "bfloat16"])
    group.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])


def results_path() -> Path:
    """Return the file with the results of this kind of processor."""
    return RESULTS / f"peers_{processor_slug()}.json"


def merge(report: dict[str, Any], run: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a report with the rows of a run in place of those of the same groups.

    Args:
        report: `runs` and `rows`; a run is referred to by its `number`.
        run: what is known of the whole run.
        rows: what it measured.
    """
    measured = {tuple(row[name] for name in GROUP) for row in rows}
    kept = [row for row in report["rows"] if tuple(row[name] for name in GROUP) not in measured]
    number = 1 + max((earlier["number"] for earlier in report["runs"]), default=0)
    used = {row["run"] for row in kept}
    runs = [earlier for earlier in report["runs"] if earlier["number"] in used]
    return {
        "processor": report["processor"],
        "runs": [*runs, {"number": number, **run}],
        "rows": [*kept, *({"run": number, **row} for row in rows)],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown, the fastest of each group first; ratios are of times, to ours."""
    lines = [
        "| page | threads | contender | median (spread) | ratio | first | load | memory, beyond weights | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (*(str(row[name]) for name in GROUP), row["median_s"])):
        ratio = "" if row["times_ours"] is None else f"{row['times_ours']:.2f}"
        cells = [
            row["workload"],
            str(row["threads"]),
            row["contender"],
            f"{row['median_s']:.3f} s ({100 * row['spread']:.0f} %)",
            ratio,
            f"{row['first_s']:.2f} s",
            f"{row['load_s']:.2f} s",
            f"{row['peak_bytes'] / 1e9:.2f}, {row['beyond_weights_bytes'] / 1e9:.2f} GB",
            f"{max(row['errors'].values()):.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_comparison(options: argparse.Namespace) -> None:
    """Measure what the options ask for, write it into the file of this processor, and print it."""
    path = options.output.with_suffix(".json") if options.output else results_path()
    report = json.loads(path.read_text()) if path.exists() else {"processor": processor_slug(), "runs": [], "rows": []}
    contenders, left_out = choose(options.peers, options.precisions)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    facts = environment(torch.device("cpu"))
    facts["versions"] |= versions()
    command = "python benchmarks/speed.py " + " ".join(sys.argv[1:])
    run: dict[str, Any] = {"command": command, "environment": facts, "left_out": left_out, "failed": {}}
    rows: list[dict[str, Any]] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    workloads = [WORKLOADS[name] for name in options.pages]
    for found, failed in compare(contenders, workloads, options.threads, options.rounds):
        for name, error in failed.items():
            print(f"failed: {name}: {error}", file=sys.stderr)
        rows, run["failed"] = rows + found, run["failed"] | failed
        write_text(path, json.dumps(merge(report, run, rows), indent=1) + "\n")
        print(table(found), flush=True)
