"""Inputs of attention with relative positions, and its definition written out with loops."""

import torch

from deepencoder.modeling.attention import AttentionInputs

GRIDS = [(6, 6), (4, 7), (1, 5), (9, 3)]
SCALING = 0.3


def make_inputs(grid: tuple[int, int], batch: int = 2, heads: int = 3, dim: int = 8) -> AttentionInputs:
    """Return seeded inputs in float64 in which every position of the grid is a query."""
    torch.manual_seed(0)
    height, width = grid
    shapes = [(batch, heads, height * width, dim)] * 3 + [(height, height, dim), (width, width, dim)]
    return AttentionInputs(*(torch.randn(shape, dtype=torch.float64) for shape in shapes), scaling=SCALING)


def tensors_of(inputs: AttentionInputs) -> list[torch.Tensor]:
    return [value for value in inputs if isinstance(value, torch.Tensor)]


def with_gradients(inputs: AttentionInputs) -> AttentionInputs:
    return AttentionInputs(*(tensor.requires_grad_() for tensor in tensors_of(inputs)), scaling=inputs.scaling)


def by_definition(inputs: AttentionInputs) -> torch.Tensor:
    """Return `(batch, height * width, heads, head_dim)`."""
    query, key, value, rows, columns = tensors_of(inputs)
    height, width = inputs.key_grid
    scores = torch.empty(*query.shape[:3], query.shape[2], dtype=query.dtype)
    for i in range(height):
        for j in range(width):
            for k in range(height):
                for m in range(width):
                    q, position, other = query[:, :, i * width + j], i * width + j, k * width + m
                    scores[:, :, position, other] = (
                        inputs.scaling * (q * key[:, :, other]).sum(-1) + q @ rows[i, k] + q @ columns[j, m]
                    )
    return (scores.softmax(-1) @ value).transpose(1, 2)


def first_queries(inputs: AttentionInputs, size: tuple[int, int]) -> AttentionInputs:
    """Keep the queries of the first rows and columns only."""
    query = inputs.query.unflatten(2, inputs.key_grid)[:, :, : size[0], : size[1]].flatten(2, 3)
    return inputs._replace(
        query=query,
        relative_height=inputs.relative_height[: size[0]],
        relative_width=inputs.relative_width[: size[1]],
    )
