"""A short name of this machine's processor, for the names of files with results.

Unusual: virtual machines often hide the processor's name and report only `AMD EPYC` or `Intel(R) Xeon(R) Processor`.
So the generation is looked up by the numbers of family and model, and the instructions that matter are always named.
"""

import platform
import re
from pathlib import Path

__all__ = ["describe_processor", "processor_slug"]

CPUINFO = Path("/proc/cpuinfo")
VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
LINES = ("epyc", "ryzen", "xeon", "core")
"""Product lines, as they appear in the names of processors."""
# Each row: vendor, family, the first and the last model number, and the generation.
GENERATIONS = (
    ("amd", 23, 0x00, 0x2F, "zen"),
    ("amd", 23, 0x30, 0xFF, "zen2"),
    ("amd", 25, 0x00, 0x0F, "zen3"),
    ("amd", 25, 0x10, 0x1F, "zen4"),
    ("amd", 25, 0x20, 0x5F, "zen3"),
    ("amd", 25, 0x60, 0xFF, "zen4"),
    ("amd", 26, 0x00, 0xFF, "zen5"),
    ("intel", 6, 85, 85, "skylake"),
    ("intel", 6, 106, 108, "icelake"),
    ("intel", 6, 143, 143, "sapphirerapids"),
    ("intel", 6, 173, 174, "graniterapids"),
    ("intel", 6, 207, 207, "emeraldrapids"),
)
# The best instruction set decides how fast products of matrices are. The first one that the processor has is named.
INSTRUCTIONS = (
    ("amx_bf16", "amx"),
    ("avx512_bf16", "avx512bf16"),
    ("avx512f", "avx512"),
    ("avx2", "avx2"),
    ("sve", "sve"),
    ("asimd", "neon"),
)


def _fields(cpuinfo: str) -> dict[str, str]:
    """Return the fields of the first processor."""
    first = cpuinfo.strip().split("\n\n")[0]
    pairs = (line.partition(":")[::2] for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def describe_processor(cpuinfo: str) -> str:
    """Return a short name made of vendor, line, generation and instructions, such as `amd-epyc-zen5-avx512bf16`.

    Args:
        cpuinfo: what `/proc/cpuinfo` holds. If it is empty, the name is that of the architecture.
    """
    fields = _fields(cpuinfo)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    instructions = next((name for flag, name in INSTRUCTIONS if flag in flags), None)
    vendor = VENDORS.get(fields.get("vendor_id", ""))
    if vendor is None:
        return "-".join(filter(None, [platform.machine().lower() or "unknown", instructions]))
    words = re.findall(r"[a-z]+", fields.get("model name", "").lower())
    line = next((name for name in LINES if name in words), None)
    family, model = int(fields.get("cpu family", 0)), int(fields.get("model", 0))
    generation = next(
        (row[4] for row in GENERATIONS if row[:2] == (vendor, family) and row[2] <= model <= row[3]), None
    )
    return "-".join(filter(None, [vendor, line, generation, instructions]))


def processor_slug() -> str:
    """Return the short name of this machine's processor."""
    return describe_processor(CPUINFO.read_text() if CPUINFO.exists() else "")
