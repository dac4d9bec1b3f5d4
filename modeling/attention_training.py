"""Attention with relative positions in training on a CPU, with a backward pass of its own.

Unusual: nothing of size N x N is kept, and none is as large as a page has positions squared. Forward and backward pass
work on a block of queries and all their keys, whose scores stay in the cache; the backward pass computes the attention
weights of a block again. torch's own fused attention does not give the gradient of a bias: with one it writes all
scores to memory, several times over.

With the attention weights `P` and their gradient `dP = dO·V`, the gradient of the scores is `P * (dP - sum(dO * O))`.
Its sums over the columns and over the rows of keys are the gradients of the two position terms. A second derivative is
computed by the definition in `attention.py`.
"""

import itertools
from typing import Any

import torch

from .attention import AttentionInputs, eager_attention, relative_position_scores
from .memory_budgets import cut_slices
from .onednn import is_plain, linear

__all__ = ["can_recompute", "recomputed_attention"]

Block = tuple[slice, slice, list[slice]]


def can_recompute(inputs: AttentionInputs) -> bool:
    """Return whether gradients are needed that [`recomputed_attention`] gives: eagerly, and without dropout."""
    return (
        inputs.needs_grad
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not inputs.dropout
        and all(map(is_plain, inputs.tensors))
    )


def _blocks(inputs: AttentionInputs, budget: int | None) -> list[Block]:
    """Cut images, heads, and rows of queries so that the scores of a block take at most `budget` bytes."""
    batch, heads = inputs.query.shape[:2]
    rows, columns = inputs.query_grid
    row_bytes = columns * inputs.key.shape[2] * inputs.query.element_size()
    if budget is None:
        return [(slice(0, batch), slice(0, heads), [slice(0, rows)])] if batch else []
    row_blocks = cut_slices(rows, budget // row_bytes)
    heads_together = max(1, min(heads, budget // (row_bytes * rows)))
    images_together = max(1, budget // (row_bytes * rows * heads))
    cuts = itertools.product(cut_slices(batch, images_together), cut_slices(heads, heads_together))
    return [(images, some, row_blocks) for images, some in cuts]


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply pairs of matrices: `(pairs, m, d)` and `(pairs, n, d)` -> `(pairs, m, n)`."""
    if left.shape[0] == 1:
        return linear(left[0], right[0])[None]
    return torch.bmm(left, right.transpose(1, 2))


def _pairs(tensor: torch.Tensor) -> torch.Tensor:
    """`(images, heads, ...)` -> `(images * heads, ...)`, contiguous."""
    return tensor.flatten(0, 1).contiguous()


def _attention_weights(
    query: torch.Tensor, key: torch.Tensor, row_scores: torch.Tensor, column_scores: torch.Tensor
) -> torch.Tensor:
    """Return the weights of a block, `(pairs, queries, keys)`, from scaled queries and both position terms."""
    weights = _multiply(query, key)
    # (pairs, rows * columns, height * width) -> (pairs, rows, columns, height, width)
    scores = weights.view(*row_scores.shape, column_scores.shape[-1])
    scores += row_scores[..., :, None]
    scores += column_scores[..., None, :]
    return torch.softmax(weights, dim=-1, out=weights)


def _attend(inputs: AttentionInputs, budget: int | None) -> torch.Tensor:
    """Return the output, `(batch, heads, N, head_dim)`, a view of memory with heads behind positions."""
    batch, heads, length, head_dim = inputs.query.shape
    columns = inputs.query_grid[1]
    output = inputs.query.new_empty(batch, length, heads, head_dim).transpose(1, 2)
    for images, some, row_blocks in _blocks(inputs, budget):
        block = inputs.block(images, some, slice(0, inputs.query_grid[0]))
        row_scores, column_scores = map(_pairs, relative_position_scores(block))
        query, key = _pairs(block.query) * inputs.scaling, _pairs(block.key)
        value = _pairs(block.value).transpose(1, 2).contiguous()
        for rows in row_blocks:
            places = slice(rows.start * columns, rows.stop * columns)
            weights = _attention_weights(query[:, places], key, row_scores[:, rows], column_scores[:, rows])
            attended = _multiply(weights, value)
            output[images, some, places] = attended.unflatten(0, block.query.shape[:2])
    return output


def _differentiate_block(
    block: AttentionInputs, output: torch.Tensor, grad_output: torch.Tensor, row_blocks: list[slice]
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of a block's five tensors, those of queries, keys and values as pairs."""
    columns = block.query_grid[1]
    row_scores, column_scores = map(_pairs, relative_position_scores(block))
    query, key, value = (_pairs(tensor) for tensor in (block.query * block.scaling, block.key, block.value))
    grad, key_transposed = _pairs(grad_output), key.transpose(1, 2).contiguous()
    query_transposed, grad_transposed = (tensor.transpose(1, 2).contiguous() for tensor in (query, grad))
    inner = (grad * _pairs(output)).sum(-1, keepdim=True)
    query_grad, grad_rows, grad_columns = map(torch.empty_like, (query, row_scores, column_scores))
    key_grad, value_grad = torch.zeros_like(key_transposed), torch.zeros_like(key_transposed)
    for rows in row_blocks:
        places = slice(rows.start * columns, rows.stop * columns)
        weights = _attention_weights(query[:, places], key, row_scores[:, rows], column_scores[:, rows])
        value_grad += _multiply(grad_transposed[..., places], weights.transpose(1, 2))
        scores_grad = _multiply(grad[:, places], value)
        scores_grad.sub_(inner[:, places]).mul_(weights)
        query_grad[:, places] = _multiply(scores_grad, key_transposed)
        key_grad += _multiply(query_transposed[..., places], scores_grad.transpose(1, 2))
        # (pairs, queries, keys) -> (pairs, rows, columns, height, width)
        scores_grad = scores_grad.view(*row_scores[:, rows].shape, column_scores.shape[-1])
        torch.sum(scores_grad, -1, out=grad_rows[:, rows])
        torch.sum(scores_grad, -2, out=grad_columns[:, rows])
    # The position terms have the unscaled query, which is here `(pairs, rows, columns, head_dim)`.
    query, query_grad = (tensor.unflatten(1, block.query_grid) for tensor in (_pairs(block.query), query_grad))
    query_grad = query_grad.mul_(block.scaling)
    query_grad += torch.einsum("phwk,hkd->phwd", grad_rows, block.relative_height)
    query_grad += torch.einsum("phwk,wkd->phwd", grad_columns, block.relative_width)
    return (
        query_grad.flatten(1, 2),
        key_grad.transpose(1, 2),
        value_grad.transpose(1, 2),
        torch.einsum("phwk,phwd->hkd", grad_rows, query),
        torch.einsum("phwk,phwd->wkd", grad_columns, query),
    )


def _differentiate(
    inputs: AttentionInputs, output: torch.Tensor, grad_output: torch.Tensor, budget: int | None
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of the five tensors of the inputs."""
    gradients = tuple(torch.empty_like(tensor) for tensor in (inputs.query, inputs.key, inputs.value))
    positions = torch.zeros_like(inputs.relative_height), torch.zeros_like(inputs.relative_width)
    every_row = slice(0, inputs.query_grid[0])
    for images, heads, row_blocks in _blocks(inputs, budget):
        block = inputs.block(images, heads, every_row)
        parts = _differentiate_block(block, output[images, heads], grad_output[images, heads], row_blocks)
        for gradient, part in zip(gradients, parts[:3], strict=True):
            gradient[images, heads] = part.unflatten(0, block.query.shape[:2])
        for gradient, part in zip(positions, parts[3:], strict=True):
            gradient += part
    return *gradients, *positions


def _differentiate_again(
    inputs: AttentionInputs, output: torch.Tensor, grad_output: torch.Tensor, budget: int | None
) -> tuple[torch.Tensor | None, ...]:
    """Return gradients that can be differentiated, with whole attention weights, by the definition."""
    tensors = inputs.tensors
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    exact = eager_attention(inputs)[0].transpose(1, 2)
    found = iter(torch.autograd.grad(exact, wanted, grad_output, create_graph=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in tensors)


class _RecomputedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        budget: int | None,
        scaling: float,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        relative_height: torch.Tensor,
        relative_width: torch.Tensor,
    ) -> torch.Tensor:
        inputs = AttentionInputs(query, key, value, relative_height, relative_width, scaling)
        with torch.autocast("cpu", enabled=False):
            output = _attend(inputs, budget)
        ctx.budget, ctx.scaling = budget, scaling
        ctx.save_for_backward(query, key, value, relative_height, relative_width, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, relative_height, relative_width, output = ctx.saved_tensors
        inputs = AttentionInputs(query, key, value, relative_height, relative_width, ctx.scaling)
        differentiate = _differentiate_again if torch.is_grad_enabled() else _differentiate
        with torch.autocast("cpu", enabled=False):
            return None, None, *differentiate(inputs, output, grad_output, ctx.budget)


def recomputed_attention(inputs: AttentionInputs, budget: int | None = None) -> torch.Tensor:
    """Attend without dropout, in blocks whose scores take at most `budget` bytes, or one row of queries of one head.

    Returns:
        `torch.Tensor` of shape `(batch, heads, rows * columns, head_dim)`.
    """
    assert not inputs.dropout
    return _RecomputedAttention.apply(budget, inputs.scaling, *inputs.tensors)
