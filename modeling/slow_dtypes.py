"""Which 16-bit dtypes this processor has no instructions for, and the warning about a model in one of them.

Unusual: having the instructions is not the same as attending fast. `attention_kernels.py` asks for matrix instructions
(AMX), without which attention is faster in float32; here the question is whether whole models are. With `avx512_bf16`
alone they are not. The processor is asked when this is first needed, and only x86 processors are known.
"""

import platform
from functools import lru_cache
from typing import Any

import torch
from transformers.utils import logging

__all__ = ["is_slow_here", "warn_if_slow"]

logger = logging.get_logger("transformers.deepencoder.precision")

INSTRUCTIONS = {torch.bfloat16: ("amx_bf16", "avx512_bf16"), torch.float16: ("amx_fp16", "avx512_fp16")}
"""Any of these makes products of matrices in a dtype as fast as in float32, or faster."""

# What torch before 2.11 tells. It does not tell `avx512_fp16`, which processors with AMX have.
OLDER_PROBES = {
    torch.bfloat16: ("_is_amx_tile_supported", "_is_avx512_bf16_supported"),
    torch.float16: ("_is_amx_fp16_supported", "_is_amx_tile_supported"),
}


@lru_cache(maxsize=1)
def _slow_dtypes() -> frozenset[torch.dtype]:
    """Return the dtypes without instructions; none where nothing is known of the processor."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        if found.get("architecture") != "x86_64":
            return frozenset()
        return frozenset(dtype for dtype, names in INSTRUCTIONS.items() if not any(map(found.get, names)))
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    probes = {
        dtype: [probe for name in names if (probe := getattr(torch.cpu, name, None))]
        for dtype, names in OLDER_PROBES.items()
    }
    return frozenset(dtype for dtype, known in probes.items() if known and not any(probe() for probe in known))


def is_slow_here(dtype: torch.dtype | None, device: torch.device | str = "cpu") -> bool:
    """Return whether a device is a CPU that has no instructions for a dtype, so that float32 is much faster."""
    return dtype in INSTRUCTIONS and torch.device(device).type == "cpu" and dtype in _slow_dtypes()


def warn_if_slow(model: Any) -> None:
    """Warn once, in one line, if a model will run in a dtype that its CPU has no instructions for.

    Nothing is said where there is an accelerator, since the model is about to be moved there.
    """
    if torch.accelerator.is_available() or not is_slow_here(model.dtype, model.device):
        return
    name = str(model.dtype).removeprefix("torch.")
    logger.warning_once(
        f"This processor has no instructions for {name}, in which the model was loaded: with dtype=torch.float32 it "
        "runs several times faster here."
    )
