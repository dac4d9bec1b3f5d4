"""The comparison: all contenders of a precision in turns, each in a process of its own, on the same page.

Unusual: the memory of the machine may not hold all contenders at once. Then they run in several turns, and our own
model in torch runs in each of them, so that every contender has been compared with it at the same time.
"""

import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepencoder.runtimes.trials.trial import Trial, TrialError, relative_error

from .contenders import ANCHORS, CONTENDERS, REFERENCE, Contender
from .files import FOLDER, prepare
from .workloads import Workload

PARAMETERS = 400_770_048
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
"""The bytes of a parameter."""
STEADY = 0.15  # The spread up to which the times of a contender are not measured again.
RESERVE = 5 * 2**30  # Another contender starts only while the machine has so much memory left.


def available_bytes() -> int:
    """Return how much memory the machine has left."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def choose(names: Sequence[str], precisions: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Return the contenders that can run, and for those that cannot the reason.

    Args:
        names: parts of their names; none for all.
        precisions: the groups from which they are chosen.
    """
    wanted = [
        contender
        for contender in CONTENDERS
        if contender.precision in precisions
        and (not names or contender.name in ANCHORS.values() or any(name in contender.name for name in names))
    ]
    reasons = {contender.name: contender.reason_to_leave_out() for contender in wanted}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return [contender for contender in wanted if contender.name not in left_out], left_out


def _start(contender: Contender, workload: Workload, threads: int, files: dict[str, Path]) -> tuple[Trial, dict]:
    """Load a contender and run it once; return its process, and what loading and this first run took."""
    trial = contender.start(workload.sides, threads)
    try:
        loaded = trial.open()
        trial.take(files, workload.patches_grid)
        first = trial.run()
    except TrialError:
        trial.close()
        raise
    return trial, {"load_s": loaded["seconds"], "loaded_bytes": loaded["held_bytes"], "first_s": first["seconds"]}


def errors_of(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the relative error of each output that a contender gives."""
    return {name: relative_error(values, expected[name]) for name, values in found.items()}


def compute_reference(workload: Workload, threads: int) -> dict[str, np.ndarray]:
    """Return what our model computes for a page in float32."""
    (contender,) = (row for row in CONTENDERS if row.name == REFERENCE)
    with tempfile.TemporaryDirectory() as folder:
        trial, _ = _start(contender, workload, threads, workload.write_inputs(FOLDER))
        with trial:
            return trial.save(Path(folder) / "output.npz")


def _spread(runs: list[dict[str, Any]]) -> float:
    """Return the difference between the slowest and the fastest run, relative to the median."""
    times = [run["seconds"] for run in runs]
    return (max(times) - min(times)) / statistics.median(times)


@dataclass
class Turn:
    """Contenders that run in turns, at the same time."""

    running: dict[Contender, Trial] = field(default_factory=dict)
    rows: dict[Contender, dict[str, Any]] = field(default_factory=dict)

    def measure(self, rounds: int, anchor: str) -> None:
        """Run all of them in turns, and complete their rows.

        After that, those whose times differ much run again, up to twice as often, since something else has disturbed
        them. Each of these runs, too, has one of the anchor beside it.
        """
        runs: dict[Contender, list[dict[str, Any]]] = {contender: [] for contender in self.running}
        for number in range(2 * rounds):
            unsteady = {contender for contender, found in runs.items() if found and _spread(found) > STEADY}
            for contender, trial in self.running.items():
                if number < rounds or (unsteady and (contender in unsteady or contender.name == anchor)):
                    runs[contender].append(trial.run())
        for contender, found in runs.items():
            row = self.rows[contender]
            row["median_s"] = statistics.median(run["seconds"] for run in found)
            row["fastest_s"] = min(run["seconds"] for run in found)
            row["spread"] = _spread(found)
            row["runs"] = len(found)
            row["peak_bytes"] = max(run["peak_bytes"] for run in found)
            row["beyond_weights_bytes"] = row["peak_bytes"] - PARAMETERS * BYTES[contender.precision]
        (ours,) = [row["median_s"] for contender, row in self.rows.items() if contender.name == anchor] or [None]
        for row in self.rows.values():
            row["times_ours"] = row["median_s"] / ours if ours else None


def run_turns(
    contenders: list[Contender],
    workload: Workload,
    threads: int,
    rounds: int,
    expected: dict[str, np.ndarray] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure contenders of one precision on one page. Returns their rows, and the errors of those that failed.

    `expected` is what their outputs are compared with. By default it is what the first of them gives.
    """
    anchor_name = ANCHORS[contenders[0].precision]
    anchors = [contender for contender in contenders if contender.name == anchor_name]
    waiting = [contender for contender in contenders if contender.name != anchor_name]
    rows: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    number = 0
    while waiting or (anchors and not rows):
        number += 1
        turn = Turn()
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            for contender in [*anchors, *waiting]:
                if len(turn.running) > len(anchors) and available_bytes() < RESERVE:
                    break
                if contender in waiting:
                    waiting.remove(contender)
                try:
                    trial, row = _start(contender, workload, threads, workload.write_inputs(FOLDER))
                except TrialError as error:
                    failed[contender.name] = str(error)
                    continue
                stack.enter_context(trial)
                output = trial.save(Path(folder) / "output.npz")
                expected = output if expected is None else expected
                turn.running[contender] = trial
                turn.rows[contender] = {"turn": number, **row, "errors": errors_of(output, expected)}
            turn.measure(rounds, anchor_name)
        for contender, row in turn.rows.items():
            rows.setdefault(contender.name, {"contender": contender.name, **row})
    return list(rows.values()), failed


def compare(
    contenders: list[Contender], workloads: Sequence[Workload], threads: Sequence[int], rounds: int
) -> Iterator[tuple[list[dict[str, Any]], dict[str, str]]]:
    """Measure contenders on pages.

    Yields:
        for each page, number of threads and precision the rows, and the errors of those that failed.
    """
    sides = sorted({side for workload in workloads for side in workload.sides})
    prepare({"models"} | {contender.files for contender in contenders if contender.files}, sides)
    for workload, count, (precision, anchor) in itertools.product(workloads, threads, ANCHORS.items()):
        group = [contender for contender in contenders if contender.precision == precision]
        if not group:
            continue
        expected = None if anchor == REFERENCE else compute_reference(workload, count)
        found, errors = run_turns(group, workload, count, rounds, expected)
        facts = {"workload": workload.name, "precision": precision, "threads": count}
        yield (
            [facts | row | {"operations": workload.operations} for row in found],
            {f"{name}, {workload.name}": error for name, error in errors.items()},
        )
