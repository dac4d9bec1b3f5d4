"""Attention with SAM's decomposed relative positions: its definition.

Unusual: the score of query (i, j) and key (k, l) is `q·k / sqrt(d) + q·Rh[i, k] + q·Rw[j, l]`, with the **unscaled**
query in both position terms. The terms depend on the query, so no bias table can be computed ahead; and written out
for every pair of positions they take 800 MB for a page of 1024 pixels. `attention_kernels.py` has faster ways to
compute the same numbers, and `attention_schedules.py` bounds the memory of any of them.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import softmax

__all__ = ["AttentionInputs", "eager_attention", "relative_position_scores"]


class AttentionInputs(NamedTuple):
    """What some queries need to attend to all positions of a `(height, width)` grid.

    The queries are a `(rows, columns)` block at the top left of that grid: all of it, or the part without padding.

    Attributes:
        query (`torch.Tensor` of shape `(batch, heads, rows * columns, head_dim)`): unscaled queries.
        key, value (`torch.Tensor` of shape `(batch, heads, height * width, head_dim)`): keys and values.
        relative_height (`torch.Tensor` of shape `(rows, height, head_dim)`): `Rh`, of [`relative_positions`].
        relative_width (`torch.Tensor` of shape `(columns, width, head_dim)`): `Rw`, of [`relative_positions`].
        scaling (`float`): factor of `q·k`.
        dropout (`float`): dropout probability of the attention weights; 0 outside training.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    relative_height: torch.Tensor
    relative_width: torch.Tensor
    scaling: float
    dropout: float = 0.0

    @property
    def query_grid(self) -> tuple[int, int]:
        """Rows and columns of queries."""
        return self.relative_height.shape[0], self.relative_width.shape[0]

    @property
    def key_grid(self) -> tuple[int, int]:
        """Height and width of the grid of keys."""
        return self.relative_height.shape[1], self.relative_width.shape[1]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What may have a gradient, in the order of the fields."""
        return self.query, self.key, self.value, self.relative_height, self.relative_width

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient will flow through this attention."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)

    def to(self, dtype: torch.dtype) -> "AttentionInputs":
        """Return the inputs in another dtype."""
        return self._replace(
            query=self.query.to(dtype),
            key=self.key.to(dtype),
            value=self.value.to(dtype),
            relative_height=self.relative_height.to(dtype),
            relative_width=self.relative_width.to(dtype),
        )

    def block(self, images: slice, heads: slice, rows: slice) -> "AttentionInputs":
        """Return the inputs of some images, heads and rows of queries."""
        columns = self.query_grid[1]
        return self._replace(
            query=self.query[images, heads, rows.start * columns : rows.stop * columns],
            key=self.key[images, heads],
            value=self.value[images, heads],
            relative_height=self.relative_height[rows],
        )


def relative_position_scores(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both position terms of every query.

    Returns:
        the terms of each query for each row of keys, `(batch, heads, rows, columns, height)`, and for each column of
        keys, `(batch, heads, rows, columns, width)`.
    """
    query = inputs.query.unflatten(2, inputs.query_grid)
    row_scores = torch.einsum("bnhwd,hkd->bnhwk", query, inputs.relative_height)
    column_scores = torch.einsum("bnhwd,wkd->bnhwk", query, inputs.relative_width)
    return row_scores, column_scores


def eager_attention(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain operations, which is the definition that the kernels are tested against.

    Returns:
        the output, `(batch, rows * columns, heads, head_dim)`, and the attention weights,
        `(batch, heads, rows * columns, height * width)`.
    """
    row_scores, column_scores = relative_position_scores(inputs)
    scores = torch.matmul(inputs.query * inputs.scaling, inputs.key.transpose(2, 3))
    # (batch, heads, rows * columns, height * width) -> (batch, heads, rows, columns, height, width)
    scores = scores.unflatten(3, inputs.key_grid).unflatten(2, inputs.query_grid)
    scores = scores + row_scores[..., :, None] + column_scores[..., None, :]
    scores = scores.flatten(4).flatten(2, 3)
    weights = softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(inputs.query.dtype)
    weights = apply_dropout(weights, p=inputs.dropout, training=inputs.dropout > 0)
    return torch.matmul(weights, inputs.value).transpose(1, 2).contiguous(), weights
