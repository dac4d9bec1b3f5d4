"""Timing all ways of running a model on this machine, with a small part of the published model.

Unusual: a page of the whole model takes seconds, and its export takes minutes. The part has layers of the published
widths, of every kind, at the resolution of a tile. What the whole model would take is estimated from the number of
operations, so it is no measurement.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .operations import count_operations
from .trial import Trial, TrialError, relative_error
from .ways import WAYS, Way, prepare_files

__all__ = ["SIDE", "Measured", "measure_ways", "part_of_published_model", "scale_to_published_model"]

SIDE = 640
MIN_SECONDS = 1.0  # Each way runs for at least this long,
MIN_RUNS = 5  # and at least this often.


def part_of_published_model() -> Any:
    """Return the configuration of the part: a windowed and a global layer of SAM, and two layers of CLIP."""
    from ...configuration import ClipVisionEncoderConfig, DeepEncoderConfig, SamEncoderConfig

    whole = DeepEncoderConfig()
    sam = whole.sam_config.to_dict() | {"num_hidden_layers": 2, "global_attn_indexes": (1,)}
    clip = whole.clip_config.to_dict() | {"num_hidden_layers": 2}
    return DeepEncoderConfig(
        sam_config=SamEncoderConfig.from_dict(sam), clip_config=ClipVisionEncoderConfig.from_dict(clip)
    )


def scale_to_published_model(config: Any, side: int) -> float:
    """Return how many times as many operations a page takes in the published model as in one of `config`."""
    from ...configuration import DeepEncoderConfig

    return count_operations(DeepEncoderConfig(), side, side) / count_operations(config, side, side)


@dataclass(frozen=True)
class Measured:
    """What was measured of one way.

    Args:
        way: the way.
        seconds: the shortest time of a page; None if it could not run.
        load_seconds: the time of loading the model.
        peak_bytes: the memory of the model and of a page; None where the system does not tell.
        error: relative error of the fused tokens, to those of torch in float32.
        problem: why it could not run.
    """

    way: Way
    seconds: float | None = None
    load_seconds: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    problem: str | None = None


@dataclass
class _Running:
    """A way whose process runs, and what is known of it so far."""

    trial: Trial
    load_seconds: float
    peak_bytes: int | None
    tokens: np.ndarray
    times: list[float] = field(default_factory=list)


def _start(way: Way, trial: Trial, folder: Path) -> _Running:
    """Load a way and run it once. The first run, which compiles or fills caches, is not timed."""
    loaded = trial.open()
    trial.take({"pixel_values": folder / "pixels.npy"})
    peak = trial.run()["peak_bytes"]
    return _Running(trial, loaded["seconds"], peak, trial.save(folder / "output.npz")["last_hidden_state"])


def _run_in_turns(ways: dict[Way, _Running], problems: dict[Way, str]) -> None:
    """Time the ways in turns, so that something else on the machine disturbs all of them alike."""
    while True:
        waiting = {
            way: running
            for way, running in ways.items()
            if way not in problems and (len(running.times) < MIN_RUNS or sum(running.times) < MIN_SECONDS)
        }
        if not waiting:
            return
        for way, running in waiting.items():
            try:
                running.times.append(running.trial.run()["seconds"])
            except TrialError as failure:
                problems[way] = str(failure)


def _conclude(way: Way, running: dict[Way, _Running]) -> Measured:
    """Return what was measured of a way. The way that was started first is what the others are compared with."""
    found, reference = running[way], next(iter(running.values()))
    error = None if found is reference else relative_error(found.tokens, reference.tokens)
    return Measured(way, min(found.times), found.load_seconds, found.peak_bytes, error)


def _prepare(config: Any, folder: Path, side: int, formats: Sequence[str]) -> None:
    """Write what all ways load: a model with random weights, its graphs, and a page of noise."""
    import torch

    from ...modeling.deepencoder import DeepEncoder

    torch.manual_seed(0)
    prepare_files(DeepEncoder(config).eval(), folder, (side,), formats)
    np.save(folder / "pixels.npy", np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32))


def measure_ways(
    config: Any,
    side: int,
    threads: int,
    ways: Sequence[Way] = WAYS,
    report: Callable[[str], None] = lambda text: None,
) -> list[Measured]:
    """Measure the ways in turns, each in a process of its own.

    Args:
        config (`DeepEncoderConfig`): the model, which gets random weights.
        side: side of the page in pixels.
        threads: number of threads.
        ways: the ways to measure. Those whose packages are not installed have a `problem`.
        report: called with what is done next.
    """
    problems = {way: f"not installed: pip install {' '.join(way.packages)}" for way in ways if way.missing}
    formats = sorted({way.format for way in ways if way.format and way not in problems})
    running: dict[Way, _Running] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        report("exporting a part of the model" if formats else "writing a part of the model")
        _prepare(config, folder, side, formats)
        for way in (way for way in ways if way not in problems):
            report(f"loading {way.title}")
            arguments: dict[str, Any] = {"folder": str(folder), "sides": [side], "threads": threads} | way.arguments
            trial = stack.enter_context(Trial(way.opener, way.imported, **arguments))
            try:
                running[way] = _start(way, trial, folder)
            except TrialError as failure:
                problems[way] = str(failure)
        report("running all in turns")
        _run_in_turns(running, problems)
    return [Measured(way, problem=problems[way]) if way in problems else _conclude(way, running) for way in ways]
