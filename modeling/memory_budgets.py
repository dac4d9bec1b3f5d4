"""How much memory the models may use at a time, in one place and in bytes.

Unusual: no budget changes a result by more than rounding. They bound temporary tensors, and on a CPU they also decide
the speed: activations that fit the cache are several times cheaper than those that do not, and allocations of 32 MB or
more go back to the system after each use and come back as page faults. Pass others to [`set_memory_budgets`].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["MEMORY_BUDGETS", "MemoryBudgets", "cut_slices", "set_memory_budgets", "split_views"]

MIB = 2**20


@dataclass(frozen=True)
class MemoryBudgets:
    """Sizes of temporary tensors, in bytes. The defaults were measured on the published model.

    Args:
        cpu_strips (`bool`, defaults to `True`): run SAM's layers in strips of rows on a CPU in inference; see
            `cpu_execution.py`. With `False` every layer runs as it is written in `sam_encoder.py`.
        attention_strip: hidden states of a strip of windowed attention: 2048 positions of width 768 in float32.
        feed_forward_strip: MLP activations of a strip: 1024 positions of width 3072 in float32.
        projection_piece: queries, keys and values that a global block projects at a time: 1024 positions in float32.
        bias_block: position bias of a block of attention on a CPU, for up to 1024 queries. It stays in the cache.
        long_bias_block: the same for more queries, so that each thread has several blocks of 256 queries to work on.
        bias_block_per_thread: at least this much for each thread, in eager mode.
        recomputed_block_per_thread: attention scores of a block in training on a CPU, for each thread. The backward
            pass holds as many gradients of scores beside them.
        large_bias_block: position bias of a block on other devices, and on a CPU in training with dropout, where few
            large steps are faster.
        unfused_block: scores and weights of a block of unfused attention: 512 queries of 4096 keys in float32.
        augmented_block: augmented queries of a block on a CPU, which has as many keys and values beside them.
        converted_attention: queries, keys, values and output of images that are converted to another dtype together.
        views: hidden states of the views that a [`DeepEncoder`] encodes together in inference: 16 pages of 1024 pixels
            or 40 tiles of 640 in half precision. They fill a large GPU and need about 2 GB of temporary memory.
    """

    cpu_strips: bool = True
    attention_strip: int = 6 * MIB
    feed_forward_strip: int = 12 * MIB
    projection_piece: int = 9 * MIB
    bias_block: int = 8 * MIB
    long_bias_block: int = 24 * MIB
    bias_block_per_thread: int = 4 * MIB
    recomputed_block_per_thread: int = 2 * MIB
    large_bias_block: int = 64 * MIB
    unfused_block: int = 16 * MIB
    augmented_block: int = 4 * MIB
    converted_attention: int = 96 * MIB
    views: int = 96 * MIB


MEMORY_BUDGETS = MemoryBudgets()
"""The budgets of every model that was not given others."""


def set_memory_budgets(model: nn.Module, budgets: MemoryBudgets) -> None:
    """Give a model other memory budgets, or switch its CPU strategy off: `MemoryBudgets(cpu_strips=False)`.

    Args:
        model: a [`DeepEncoder`] or [`SamEncoder`], which keeps the budgets until it is given others. They are not
            saved with it.
        budgets ([`MemoryBudgets`]): the new budgets.
    """
    for module in model.modules():
        if hasattr(module, "memory_budgets"):
            module.memory_budgets = budgets  # type: ignore[assignment]  # not a tensor, whatever nn.Module says


def cut_slices(length: int, step: int) -> list[slice]:
    """Cut `length` positions into slices of `step` positions, but at least one; the last may be shorter."""
    step = max(1, step)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def split_views(
    pixel_values: torch.Tensor, sam_config: Any, dtype: torch.dtype, budgets: MemoryBudgets
) -> Sequence[torch.Tensor]:
    """Split views `(views, channels, height, width)` into parts that are encoded together.

    Only inference is split: a graph, and what a gradient needs, stays whole.

    Args:
        sam_config: configuration of the SAM encoder.
        dtype: dtype in which the model computes.
        budgets: bounds the hidden states of a part by `views`.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return (pixel_values,)
    patch_size = sam_config.patch_size
    positions = (pixel_values.shape[2] // patch_size) * (pixel_values.shape[3] // patch_size)
    return pixel_values.split(max(1, budgets.views // (positions * sam_config.hidden_size * dtype.itemsize)))
