"""Schedules that bound the memory of any attention kernel: whole, concatenated, or in place.

Unusual: attention is independent between images, heads and rows of queries, so a kernel may run on a block of them at
a time. Which schedule runs depends on what may happen to a tensor: outside of graphs and gradients a CPU writes blocks
into one output; a graph or a gradient needs new tensors, which are concatenated.
"""

import itertools
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from .attention import AttentionInputs, eager_attention
from .attention_kernels import ATTENTION_KERNELS, AttentionKernel, choose_kernel
from .memory_budgets import MEMORY_BUDGETS, MemoryBudgets, cut_slices

__all__ = ["attend", "attend_with_kernel", "check_attention_implementation"]


class Blocks(NamedTuple):
    """How images, heads and rows of queries are cut."""

    images: list[slice]
    heads: list[slice]
    rows: list[slice]


def cut_blocks(inputs: AttentionInputs, kernel: AttentionKernel, budget: int | None) -> Blocks:
    """Cut the inputs so that a block holds at most `budget` bytes, or one row of queries of one head.

    Rows stay together as long as possible, then heads, then images. In a graph for batches of any size, images always
    stay together.
    """
    batch, heads = inputs.query.shape[:2]
    rows, columns = inputs.query_grid
    row_bytes = columns * kernel.elements_per_query(inputs) * inputs.query.element_size()
    if not isinstance(batch, int):
        images = [slice(None)]
    else:
        images = cut_slices(batch, batch if budget is None else budget // (row_bytes * rows * heads))
    return Blocks(
        images,
        cut_slices(heads, heads if budget is None else budget // (row_bytes * rows)),
        cut_slices(rows, rows if budget is None else budget // row_bytes),
    )


def _heads_last(output: torch.Tensor, batch_is_known: bool) -> torch.Tensor:
    """Move heads behind positions: `(batch, heads, N, head_dim)` -> `(batch, N, heads, head_dim)`, contiguous."""
    moved = output.transpose(1, 2)
    # An exported graph may run another kernel than the traced one, whose output has other strides: always copy there.
    return moved.contiguous() if batch_is_known else moved.clone(memory_format=torch.contiguous_format)


def _attend_concatenated(
    inputs: AttentionInputs, kernel: AttentionKernel, blocks: Blocks, needs_grad: bool
) -> torch.Tensor:
    """Compute each block as a new tensor; in training it is computed again in the backward pass, not kept."""

    def attend_block(images: slice, heads: slice, rows: slice) -> torch.Tensor:
        block = inputs.block(images, heads, rows)
        if needs_grad:
            return checkpoint(kernel.attend, block, None, use_reentrant=False)
        return kernel.attend(block, None)

    return torch.cat(
        [
            torch.cat(
                [
                    torch.cat([attend_block(images, heads, rows) for rows in blocks.rows], dim=2)
                    for heads in blocks.heads
                ],
                dim=1,
            )
            for images in blocks.images
        ]
    )


def _attend_in_place(inputs: AttentionInputs, kernel: AttentionKernel, blocks: Blocks) -> torch.Tensor:
    """Write each block into the output, `(batch, N, heads, head_dim)`, and reuse the kernel's memory."""
    batch, heads, length, head_dim = inputs.query.shape
    columns = inputs.query_grid[1]
    output = inputs.query.new_empty(batch, length, heads, head_dim)
    memory = None
    if kernel.reuses_memory and blocks.images:
        largest = inputs.block(blocks.images[0], blocks.heads[0], blocks.rows[0]).query[..., 0].numel()
        memory = inputs.query.new_empty(largest * kernel.elements_per_query(inputs))
    for images, heads_together, rows in itertools.product(*blocks):
        positions = slice(rows.start * columns, rows.stop * columns)
        attended = kernel.attend(inputs.block(images, heads_together, rows), memory)
        output[images, positions, heads_together] = attended.transpose(1, 2)
    return output


def _attend_in_blocks(inputs: AttentionInputs, kernel: AttentionKernel, budgets: MemoryBudgets) -> torch.Tensor:
    """Attend in the dtype of the inputs, by the schedule that suits them."""
    needs_grad = inputs.needs_grad
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    budget = kernel.budget(inputs, budgets, needs_grad)
    if kernel.attend_in_blocks is not None:
        return _heads_last(kernel.attend_in_blocks(inputs, budget), batch_is_known=True)
    blocks = cut_blocks(inputs, kernel, budget)
    if inputs.query.device.type == "cpu" and not (needs_grad or in_graph):
        return _attend_in_place(inputs, kernel, blocks)
    batch_is_known = isinstance(inputs.query.shape[0], int)
    if all(len(slices) <= 1 for slices in blocks):
        return _heads_last(kernel.attend(inputs, None), batch_is_known)
    return _heads_last(_attend_concatenated(inputs, kernel, blocks, needs_grad), batch_is_known)


def _attend_converted(
    inputs: AttentionInputs, kernel: AttentionKernel, compute_dtype: torch.dtype, budgets: MemoryBudgets
) -> torch.Tensor:
    """Attend in another dtype than that of the inputs, a few images at a time."""
    batch, heads, length, head_dim = inputs.query.shape
    images = [slice(None)]
    if isinstance(batch, int):
        bytes_per_image = 2 * heads * (length + inputs.key.shape[2]) * head_dim * compute_dtype.itemsize
        images = cut_slices(batch, budgets.converted_attention // bytes_per_image) or images
    rows = slice(0, inputs.query_grid[0])
    # Autocast would convert them back.
    with torch.autocast(inputs.query.device.type, enabled=False):
        parts = [
            _attend_in_blocks(inputs.block(some, slice(None), rows).to(compute_dtype), kernel, budgets)
            for some in images
        ]
        return torch.cat([part.to(inputs.query.dtype) for part in parts])


def attend_with_kernel(
    inputs: AttentionInputs, kernel: AttentionKernel, budgets: MemoryBudgets = MEMORY_BUDGETS
) -> torch.Tensor:
    """Attend with a kernel in blocks of bounded memory.

    Returns:
        `torch.Tensor` of shape `(batch, rows * columns, heads, head_dim)`.
    """
    compute_dtype = kernel.compute_dtype
    if compute_dtype is None or compute_dtype.itemsize <= inputs.query.element_size():
        return _attend_in_blocks(inputs, kernel, budgets)
    return _attend_converted(inputs, kernel, compute_dtype, budgets)


def check_attention_implementation(implementation: str | None) -> str:
    """Return the `attn_implementation` to use; None means `"eager"`, as in transformers.

    Raises:
        `ValueError`: it is neither `"eager"` nor in the table of kernels.
    """
    name = implementation or "eager"
    known = dict.fromkeys(["eager", *(kernel.implementation for kernel in ATTENTION_KERNELS)])
    if name not in known:
        choices = ", ".join(map(repr, known))
        raise ValueError(f"attn_implementation of a SAM encoder must be one of {choices}, got {name!r}.")
    return name


def attend(
    inputs: AttentionInputs, implementation: str | None, budgets: MemoryBudgets = MEMORY_BUDGETS
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend with the kernel that an `attn_implementation` chooses for these inputs.

    Returns:
        the output, `(batch, rows * columns, heads, head_dim)`, and the attention weights,
        `(batch, heads, rows * columns, height * width)`, which only `"eager"` gives.

    Raises:
        `ValueError`: an unknown `implementation`.
    """
    name = check_attention_implementation(implementation)
    if name == "eager":
        return eager_attention(inputs)
    return attend_with_kernel(inputs, choose_kernel(inputs, name), budgets), None
