"""What a user decides by before loading a model: its size in each dtype, and what a page costs if that was measured.

Unusual: measurements hold for one architecture on one machine. They are shown for a model of exactly that size, and
with the name of the processor. `benchmarks/results` holds the runs they come from.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

__all__ = ["MEASURED_ON", "MEASUREMENTS", "Measurement", "describe_stored", "describe_weights", "measurements_of"]

PUBLISHED_PARAMETERS = 400_770_048
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
MEASURED_ON = "two cores of an Intel Xeon with AMX"


@dataclass(frozen=True)
class Measurement:
    """What one page took.

    Args:
        mode: the resolution mode.
        dtype: dtype of the model.
        pages: what was encoded, as the results of the benchmark name it.
        seconds: median time.
        gigabytes: memory that the forward pass added to the loaded model.
    """

    mode: str
    dtype: str
    pages: str
    seconds: float
    gigabytes: float


MEASUREMENTS = (
    Measurement("tiny", "float32", "512", 0.91, 0.10),
    Measurement("tiny", "bfloat16", "512", 0.32, 0.06),
    Measurement("small", "float32", "640", 1.41, 0.11),
    Measurement("small", "bfloat16", "640", 0.42, 0.09),
    Measurement("base", "float32", "1024", 3.99, 0.18),
    Measurement("base", "bfloat16", "1024", 1.29, 0.14),
    Measurement("large", "float32", "1280", 6.99, 0.32),
    Measurement("large", "bfloat16", "1280", 2.35, 0.22),
    Measurement("gundam", "float32", "1024, 6 tiles", 11.82, 0.32),
    Measurement("gundam", "bfloat16", "1024, 6 tiles", 3.38, 0.26),
)
"""One page of the published model on [`MEASURED_ON`]. A page with six tiles is an A4 page in the mode gundam."""


def measurements_of(config: Any, num_parameters: int) -> dict[str, dict[str, Measurement]]:
    """Return the measurements for a model, by mode and dtype; none if no model of its size was measured."""
    if config.model_type != "deepencoder" or num_parameters != PUBLISHED_PARAMETERS:
        return {}
    modes: dict[str, dict[str, Measurement]] = {}
    for row in MEASUREMENTS:
        modes.setdefault(row.mode, {})[row.dtype] = row
    return modes


def _in_bytes(count: int) -> str:
    """Return a number of bytes in a unit that suits it, for example `802 MB`."""
    unit, scale = next((row for row in UNITS if count >= 0.9995 * row[1]), ("bytes", 1))
    return f"{count / scale:.3g} {unit}"


def describe_weights(num_parameters: int) -> str:
    """Return how large a model's weights are in each dtype, for example `1.6 GB in float32, 802 MB in bfloat16`."""
    sizes: dict[str, list[str]] = {}
    for dtype, item_size in BYTES.items():
        sizes.setdefault(_in_bytes(num_parameters * item_size), []).append(dtype)
    return ", ".join(f"{size} in {' or '.join(dtypes)}" for size, dtypes in sizes.items())


def describe_stored(folder: Path) -> str | None:
    """Return the size and the dtypes of a model's weights, for example `802 MB in bfloat16`.

    Only the headers are read. None if the folder has no weights in safetensors files, or damaged ones.
    """
    files = [*folder.glob("model.safetensors")] or [*folder.glob("model-*-of-*.safetensors")]
    dtypes = set()
    try:
        for file in files:
            with safe_open(file, framework="numpy") as opened:
                dtypes |= {str(opened.get_slice(name).get_dtype()) for name in opened.keys()}  # noqa: SIM118
        size = sum(file.stat().st_size for file in files)
    except Exception:  # The library raises exceptions of its own for damaged files.
        return None
    names = sorted(STORED_DTYPES.get(dtype, dtype) for dtype in dtypes)
    return f"{_in_bytes(size)} in {' and '.join(names)}" if names else None
