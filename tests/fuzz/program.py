"""The program: it runs the cases of a seed in worker processes, and reports those that broke a rule.

Unusual: a case is nothing but its name. Its input is drawn from the seed and the name wherever it runs, so that
`--case AREA/NUMBER` repeats it alone.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import datasets
from transformers.utils import logging as transformers_logging

from deepencoder.extraction.workers import map_in_processes

from .areas import AREAS
from .materials import prepare
from .trials import Area, Failure, TrialRunner

__all__ = ["main", "run_cases", "schedule"]

GRACE = 30.0  # seconds after which a process is killed whose own watchdog did not end it
BACKSTOP = 8 << 30  # bytes that a process may take in any case; the areas have limits of their own
SHOWN = 5  # cases that are named for each kind of failure


def schedule(areas: Sequence[Area], count: int, seed: int) -> list[str]:
    """Return the names of `count` cases, shared among the areas and in random order."""
    total = sum(area.share for area in areas)
    names = [f"{area.name}/{number}" for area in areas for number in range(max(1, round(count * area.share / total)))]
    Random(seed).shuffle(names)
    return names


def _until(cases: Sequence[str], deadline: float, started: list[str]) -> Iterator[str]:
    for case in cases:
        if time.monotonic() > deadline:
            return
        started.append(case)
        yield case


def run_cases(
    runner: TrialRunner, cases: Sequence[str], seconds: float, processes: int
) -> tuple[list[str], list[Failure]]:
    """Run cases until they are done or the time is over. Returns those that ran, and the failures."""
    started: list[str] = []
    longest = max(area.seconds for area in runner.areas.values()) + GRACE
    results = map_in_processes(
        runner,
        _until(cases, time.monotonic() + seconds, started),
        processes,
        lambda case, reason: Failure(
            case, f"hung or died: {reason}; see the trace above", f"{case.split('/')[0]}: died"
        ),
        seconds=longest,
        memory=BACKSTOP,
    )
    return started, [failure for failure in results if failure is not None]


def _report(failures: Sequence[Failure], seed: int) -> None:
    """Print failures by kind, each with the command that repeats it."""
    kinds: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in failures:
        kinds[failure.case.split("/")[0], failure.place].append(failure)
    for (_, place), group in sorted(kinds.items()):
        first = group[0]
        print(f"\nfuzz: {len(group)} x {place}\n  {first.reason}\n  {first.facts[:1000]}")
        for failure in group[:SHOWN]:
            print(f"  python -m tests.fuzz --seed {seed} --case {failure.case}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=900.0, help="no case starts later than this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--area", choices=[area.name for area in AREAS], action="append", help="only these areas")
    parser.add_argument("--case", metavar="AREA/NUMBER", action="append", help="only these cases, with all details")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program. Returns its exit code: 1 if a case broke a rule."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    options = _parse(arguments)
    areas = [area for area in AREAS if options.area is None or area.name in options.area]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        runner = TrialRunner({area.name: area for area in AREAS}, prepare(Path(folder) / "fuzz"), options.seed)
        cases = options.case or schedule(areas, options.cases, options.seed)
        start = time.monotonic()
        if len(cases) == 1:  # In this process, where a debugger can be used.
            done, failures = cases, [failure for failure in map(runner, cases) if failure is not None]
        else:
            done, failures = run_cases(runner, cases, options.seconds, options.processes)
        seconds = time.monotonic() - start
    if options.case:
        for failure in failures:
            print(f"{failure.case}: {failure.reason}\n{failure.facts}\n{failure.detail}")
    else:
        _report(failures, options.seed)
    count = len({case.split("/")[0] for case in done})
    print(
        f"fuzz: {len(done):,} cases of {count} area{'s' * (count != 1)} in {seconds:.0f} s, "
        f"{len(failures):,} failures (seed {options.seed})"
    )
    return 1 if failures else 0
