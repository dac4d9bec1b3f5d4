"""Timing all ways of running a model on this machine, with a small part of the published model.

Unusual: a page of the whole model takes seconds, and its export takes minutes. The part has layers of the published
widths, of every kind, at the resolution of a tile. What the whole model would take is estimated from the number of
operations, so it is no measurement.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .operations import count_operations
from .trial import Trial, TrialError, relative_error
from .ways import WAYS, Way, prepare_files

__all__ = ["SIDE", "Measured", "measure_ways", "part_of_published_model", "scale_to_published_model"]

SIDE = 640
MIN_SECONDS = 1.0  # Each way runs for at least this long,
MIN_RUNS = 3  # and at least this often.


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
        seconds: the median time of a page; None if it could not run.
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


def _measure(way: Way, folder: Path, side: int, threads: int, expected: np.ndarray | None) -> tuple[Measured, Any]:
    """Measure one way; return it, and the fused tokens."""
    with Trial(way.opener, way.imported, folder=str(folder), sides=[side], threads=threads, **way.arguments) as trial:
        loaded = trial.open()
        trial.take({"pixel_values": folder / "pixels.npy"})
        peak = trial.run()["peak_bytes"]  # The first run, which is not timed, compiles or fills caches.
        times: list[float] = []
        while len(times) < MIN_RUNS or sum(times) < MIN_SECONDS:
            times.append(trial.run()["seconds"])
        tokens = trial.save(folder / "output.npz")["last_hidden_state"]
    error = None if expected is None else relative_error(tokens, expected)
    return Measured(way, float(np.median(times)), loaded["seconds"], peak, error), tokens


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
) -> Iterator[Measured]:
    """Measure the ways one after the other, each in a process of its own.

    Args:
        config (`DeepEncoderConfig`): the model, which gets random weights.
        side: side of the page in pixels.
        threads: number of threads.
        ways: the ways to measure. Those whose packages are not installed have a `problem`.
        report: called with what is done next.
    """
    formats = sorted({way.format for way in ways if way.format and not way.missing})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report("exporting a part of the model" if formats else "writing a part of the model")
        _prepare(config, folder, side, formats)
        expected: np.ndarray | None = None
        for way in ways:
            if way.missing:
                yield Measured(way, problem=f"not installed: pip install {' '.join(way.packages)}")
                continue
            report(way.title)
            try:
                measured, tokens = _measure(way, folder, side, threads, expected)
            except TrialError as failure:
                yield Measured(way, problem=str(failure))
                continue
            expected = tokens if expected is None else expected
            yield measured
