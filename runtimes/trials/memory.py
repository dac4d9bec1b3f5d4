"""The memory of this process: what it holds now, and the most that it has held since a moment.

Unusual: only Linux can forget an earlier peak. Elsewhere the peak is that of the whole life of the process, and on
Windows, where the standard library knows neither number, both are None.
"""

import sys
from pathlib import Path

__all__ = ["forget_peak", "held_bytes", "peak_bytes"]

STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")


def _status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _peak_of_life() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes() -> int | None:
    """Return the bytes of memory that this process holds."""
    return _status_bytes("VmRSS") if STATUS.exists() else _peak_of_life()


def peak_bytes() -> int | None:
    """Return the most bytes that this process has held since [`forget_peak`]."""
    return _status_bytes("VmHWM") if STATUS.exists() else _peak_of_life()


def forget_peak() -> None:
    """Begin the measurement of a new peak, where the system supports it."""
    try:
        PEAK_RESET.write_text("5")
    except OSError:
        return
