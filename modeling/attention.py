"""Attention with SAM's decomposed relative positions.

Unusual: the score of query (i, j) and key (k, l) is `q·k / sqrt(d) + q·Rh[i, k] + q·Rw[j, l]`, with the **unscaled**
query in both position terms. They depend on the query, so no bias table can be made ahead; and written out for every
pair of positions they are an N x N matrix a head, 800 MB for a 1024 pixel page. So `sdpa` writes out a few rows at a
time; or, where a flash kernel is fast, none: it lengthens queries and keys so that their product holds the terms.

The functions take `key` and `value` of shape `(batch, heads, height * width, head_dim)` and the queries of all these
positions or of the first `rows` and `columns`, `(batch, heads, rows * columns, head_dim)`. They give
`(batch, rows * columns, heads, head_dim)`, as transformers' attention functions do.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import pad, scaled_dot_product_attention, softmax
from torch.utils.checkpoint import checkpoint

__all__ = [
    "RELATIVE_POSITION_ATTENTION_FUNCTIONS",
    "WindowGroup",
    "Windows",
    "cut_windows",
    "eager_relative_position_attention",
    "get_relative_position_attention",
    "group_windows",
    "lengthened_relative_position_attention",
    "relative_position_scores",
    "sdpa_relative_position_attention",
]


# Elements of lengthened queries to have at a time on a CPU, beside as many of keys and of values.
LENGTHENED_BUDGET = 2**21


class Windows(NamedTuple):
    """Where the windows of a grid find their positions, and the other way round.

    Attributes:
        positions (`torch.Tensor` of shape `(windows * window_size ** 2,)`): for each position of each window, both
            row-major, its index in the row-major grid; `height * width` for padding at the bottom and on the right.
        places (`torch.Tensor` of shape `(height * width,)`): the way back: where each position of the grid ended up.
    """

    positions: torch.Tensor
    places: torch.Tensor


def cut_windows(grid: tuple[int, int], window_size: int, device: torch.device | None = None) -> Windows:
    """Cut a grid of `(height, width)` positions into square windows, padded at the bottom and on the right."""
    height, width = grid
    rows, columns = -(-height // window_size), -(-width // window_size)
    padded_height, padded_width = rows * window_size, columns * window_size
    positions = torch.arange(height * width, device=device).view(height, width)
    positions = pad(positions, (0, padded_width - width, 0, padded_height - height), value=height * width)
    # (rows, size, columns, size) -> (rows, columns, size, size)
    positions = positions.view(rows, window_size, columns, window_size).transpose(1, 2).reshape(-1)
    places = torch.arange(padded_height * padded_width, device=device)
    # (rows, columns, size, size) -> (rows, size, columns, size)
    places = places.view(rows, columns, window_size, window_size).transpose(1, 2)
    places = places.reshape(padded_height, padded_width)[:height, :width].reshape(-1)
    return Windows(positions, places)


class WindowGroup(NamedTuple):
    """Windows of a grid that have as many rows and columns of it, which padding completes.

    Attributes:
        rows, columns (`int`): the real positions of each window, at its top left.
        queries (`torch.Tensor` of shape `(windows * rows * columns,)`): the indices of these in the row-major grid.
        keys (`torch.Tensor` of shape `(windows * window_size ** 2,)`): as [`Windows`] has them, with padding.
    """

    rows: int
    columns: int
    queries: torch.Tensor
    keys: torch.Tensor


def group_windows(
    grid: tuple[int, int], window_size: int, device: torch.device | None = None
) -> tuple[list[WindowGroup], torch.Tensor]:
    """Cut as [`cut_windows`] does, into up to four groups: whole windows, the right edge's, the bottom's, the corner.

    Returns:
        the groups, and for each position of the grid its place among the queries of all groups, `(height * width,)`.
    """
    down, across = (-(-side // window_size) for side in grid)
    # (windows down, windows across, size, size)
    positions = cut_windows(grid, window_size, device).positions.view(down, across, window_size, window_size)
    parts: list[list[tuple[slice, int]]] = []
    for side in grid:
        whole, rest = side // window_size, side % window_size
        inside, at_the_edge = (slice(0, whole), window_size), (slice(whole, None), rest)
        parts.append([inside] * (whole > 0) + [at_the_edge] * (rest > 0))
    groups = []
    for (places_down, rows), (places_across, columns) in itertools.product(*parts):
        windows = positions[places_down, places_across]
        groups.append(WindowGroup(rows, columns, windows[..., :rows, :columns].flatten(), windows.flatten()))
    return groups, torch.cat([group.queries for group in groups]).argsort()


def relative_position_scores(
    query: torch.Tensor, relative_height: torch.Tensor, relative_width: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both position terms of every query.

    Args:
        query (`torch.Tensor` of shape `(batch, heads, rows * columns, head_dim)`): unscaled queries.
        relative_height (`torch.Tensor` of shape `(rows, height, head_dim)`): their rows of [`relative_positions`].
        relative_width (`torch.Tensor` of shape `(columns, width, head_dim)`): likewise for columns.

    Returns:
        two `torch.Tensor` of shapes `(batch, heads, rows, columns, height)` and `(batch, heads, rows, columns,
        width)`: a query's terms for each row and for each column of keys.
    """
    query = query.unflatten(2, (relative_height.shape[0], relative_width.shape[0]))
    row_scores = torch.einsum("bnhwd,hkd->bnhwk", query, relative_height)
    column_scores = torch.einsum("bnhwd,wkd->bnhwk", query, relative_width)
    return row_scores, column_scores


def eager_relative_position_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_height: torch.Tensor,
    relative_width: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend in plain operations, and return the weights, `(batch, heads, rows * columns, height * width)`, too."""
    row_scores, column_scores = relative_position_scores(query, relative_height, relative_width)
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    queries, keys = zip(relative_height.shape[:2], relative_width.shape[:2], strict=True)
    # -> (batch, heads, rows, columns, height, width): the terms broadcast, and are never written out.
    scores = scores.unflatten(3, keys).unflatten(2, queries)
    scores = scores + row_scores[..., :, None] + column_scores[..., None, :]
    weights = softmax(
        scores.flatten(4).flatten(2, 3), dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)
    ).to(query.dtype)
    weights = apply_dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _sdpa_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_height: torch.Tensor,
    relative_width: torch.Tensor,
    scaling: float,
    dropout: float,
    buffer: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from all queries at once, whose bias may lie in `buffer`."""
    row_scores, column_scores = relative_position_scores(query, relative_height, relative_width)
    bias = None
    if buffer is not None:
        # As `out`, lest the sum take over the strides of its terms, which nothing can flatten without a copy.
        shape = (*row_scores.shape, column_scores.shape[-1])
        bias = buffer[: row_scores.numel() * shape[-1]].view(shape)
    bias = torch.add(row_scores[..., :, None], column_scores[..., None, :], out=bias)
    # (batch, heads, rows, columns, height, width) -> (batch, heads, rows * columns, height * width)
    bias = bias.flatten(4).flatten(2, 3)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)


def _bias_budget(query: torch.Tensor, needs_grad: bool) -> int:
    """Elements of position bias to hold at a time."""
    is_graph = torch.compiler.is_compiling()
    if is_graph and (query.device.type != "cpu" or not isinstance(query.shape[0], int)):
        return max(2**24, query.shape[2] ** 2)  # at least a head: each block is a node of the graph
    if needs_grad or query.device.type != "cpu":
        return 2**24
    # What stays in the cache; but for long sequences enough that each thread has several blocks of 256 queries.
    budget = 2**21 if query.shape[2] <= 1024 else 6 * 2**20
    return budget if is_graph else max(budget, 2**20 * torch.get_num_threads())


def _cut(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _blocks(
    batch: int, heads: int, rows: int, row_elements: int, budget: int
) -> tuple[list[slice], list[slice], list[slice]]:
    """Cut batch, heads and rows so that a block has at most `budget` elements; rows stay whole as long as possible."""
    rows_a_block = min(rows, max(1, budget // row_elements))
    heads_a_block = min(heads, max(1, budget // (row_elements * rows)))
    images_a_block = min(batch, max(1, budget // (row_elements * rows * heads)))
    return _cut(batch, images_a_block), _cut(heads, heads_a_block), _cut(rows, rows_a_block)


def _heads_last(output: torch.Tensor, as_traced: bool) -> torch.Tensor:
    """Put heads behind positions: `(batch, heads, N, head_dim)` -> `(batch, N, heads, head_dim)`, contiguous."""
    moved = output.transpose(1, 2)
    # A graph that is exported may run on another kernel, whose strides are not those that were traced.
    return moved.contiguous() if as_traced else moved.clone(memory_format=torch.contiguous_format)


def lengthened_relative_position_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_height: torch.Tensor,
    relative_width: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attend without any N x N matrix: the softmax of `q'·k'` with `q' = [scaling q, q·Rh, q·Rw]` and a key's row and
    column one-hot in `k' = [k, row, column]`. `dropout` applies as it is given."""
    batch, heads, _, head_dim = query.shape
    height, width = relative_height.shape[1], relative_width.shape[1]
    row_scores, column_scores = relative_position_scores(query, relative_height, relative_width)
    # Kernels take head sizes that are multiples of 8, and want values to be as long as queries and keys.
    padding = -(head_dim + height + width) % 8
    rows = torch.eye(height, device=key.device, dtype=key.dtype).repeat_interleave(width, dim=0)
    columns = torch.eye(width, width + padding, device=key.device, dtype=key.dtype).repeat(height, 1)
    places = torch.cat([rows, columns], dim=1).expand(batch, heads, -1, -1)  # (batch, heads, N, height + width + ..)
    query = torch.cat([query * scaling, row_scores.flatten(2, 3), pad(column_scores.flatten(2, 3), (0, padding))], -1)
    key = torch.cat([key, places], dim=-1)
    value = pad(value, (0, query.shape[-1] - head_dim))
    output = scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0)
    return output[..., :head_dim]


def _suits_flash(query: torch.Tensor, grid: tuple[int, int]) -> bool:
    """Whether to lengthen queries for a flash kernel: up to CUDA's largest head size, 256, and in half precision.

    On a CPU that is bfloat16, whose products are fast (with AMX) and whose sums, a bias, are slow; with float16 and
    float32 it is the other way round.
    """
    dtypes = {"cuda": (torch.float16, torch.bfloat16), "cpu": (torch.bfloat16,)}
    return query.dtype in dtypes.get(query.device.type, ()) and query.shape[-1] + sum(grid) <= 256


def sdpa_relative_position_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_height: torch.Tensor,
    relative_width: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend through `scaled_dot_product_attention`: lengthened where a flash kernel takes it, else with the position
    terms of some rows at a time as its mask.

    In training each step is recomputed in the backward pass, so that no step's bias outlives it there either.
    """
    batch, heads, length, head_dim = query.shape
    (rows, height), (columns, width) = relative_height.shape[:2], relative_width.shape[:2]
    dropout = dropout if module.training else 0.0
    images_known = isinstance(batch, int)
    needs_grad = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query, key, value, relative_height, relative_width)
    )
    in_place = query.device.type == "cpu" and not (
        needs_grad or torch.compiler.is_compiling() or torch.jit.is_tracing()
    )
    lengthens = _suits_flash(query, (height, width))
    function: Callable[..., torch.Tensor] = lengthened_relative_position_attention if lengthens else _sdpa_rows
    elements = head_dim + height + width if lengthens else height * width  # that are made for each query
    budget = LENGTHENED_BUDGET if lengthens else _bias_budget(query, needs_grad)
    # The number of images is unknown in a graph for any batch: there, all of them go together.
    small = (batch if images_known else 1) * heads * length * elements <= budget
    if not in_place and (small or lengthens):
        output = function(query, key, value, relative_height, relative_width, scaling, dropout)
        return _heads_last(output, images_known), None

    def attend(images: slice, parts: slice, block: slice, *buffers: torch.Tensor) -> torch.Tensor:
        arguments = (
            query[images, parts, block.start * columns : block.stop * columns],
            key[images, parts],
            value[images, parts],
            relative_height[block],
            relative_width,
            scaling,
            dropout,
            *buffers,
        )
        return checkpoint(function, *arguments, use_reentrant=False) if needs_grad else function(*arguments)

    image_blocks, head_blocks, row_blocks = _blocks(
        batch if images_known else 1, heads, rows, columns * elements, budget
    )
    if not images_known:
        image_blocks = [slice(None)]
    if not in_place:
        output = torch.cat(
            [
                torch.cat([torch.cat([attend(i, h, r) for r in row_blocks], dim=2) for h in head_blocks], dim=1)
                for i in image_blocks
            ]
        )
        return _heads_last(output, images_known), None

    output = query.new_empty(batch, length, heads, head_dim)
    largest = query[image_blocks[0], head_blocks[0], : row_blocks[0].stop * columns]
    buffers = [] if lengthens else [query.new_empty(largest[..., 0].numel() * height * width)]
    for images, parts, block in itertools.product(image_blocks, head_blocks, row_blocks):
        positions = slice(block.start * columns, block.stop * columns)
        output[images, positions, parts] = attend(images, parts, block, *buffers).transpose(1, 2)
    return output, None


RELATIVE_POSITION_ATTENTION_FUNCTIONS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor | None]]] = {
    "eager": eager_relative_position_attention,
    "sdpa": sdpa_relative_position_attention,
}


def get_relative_position_attention(
    implementation: str | None,
) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """Return the attention function that `attn_implementation` names; None means `"eager"`, as in transformers."""
    name = implementation or "eager"
    if name not in RELATIVE_POSITION_ATTENTION_FUNCTIONS:
        known = ", ".join(repr(known) for known in RELATIVE_POSITION_ATTENTION_FUNCTIONS)
        raise ValueError(f"attn_implementation of a SAM encoder must be one of {known}, got {name!r}.")
    return RELATIVE_POSITION_ATTENTION_FUNCTIONS[name]
