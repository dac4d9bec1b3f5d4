"""From the outputs of exported graphs to the sequences that DeepSeek-OCR's decoder reads, in plain numpy.

Unusual: this is for programs that run the encoder in ONNX Runtime or another runtime, so it imports neither torch nor
transformers. A [`DeepEncoder`] does the same itself, and calls the result `vision_tokens`.
"""

from collections.abc import Sequence
from math import isqrt
from reprlib import repr as shorten
from typing import Any

import numpy as np

__all__ = ["stitch_vision_tokens"]


def _to_grids(tokens: np.ndarray, name: str) -> np.ndarray:
    """Return tokens `(views, n, dim)` as `(views, h, h, dim)`."""
    if tokens.ndim != 3:
        raise ValueError(f"{name} must have 3 dimensions (views, tokens, dim), got shape {tokens.shape}.")
    views, count, dim = tokens.shape
    side = isqrt(count)
    if side * side != count or not side:
        raise ValueError(f"{name} must hold the tokens of square views, got {count} tokens a view.")
    return tokens.reshape(views, side, side, dim)


def _read_grids(patches_grid: Any, num_views: int, num_tiles: int) -> list[tuple[int, int]]:
    """Return the columns and rows of each page's tiles, checked."""
    try:
        cells = np.asarray(patches_grid)
    except ValueError:  # Its rows differ in length.
        cells = np.empty(0)
    if cells.shape != (num_views, 2) or cells.dtype.kind not in "iu" or cells.min(initial=1) < 1:
        raise ValueError(
            f"patches_grid must hold {num_views} pairs of positive integers (columns, rows), one for each page, got "
            f"{shorten(patches_grid)}."
        )
    grids = [(columns, rows) for columns, rows in cells.tolist()]
    wanted = sum(columns * rows for columns, rows in grids if (columns, rows) != (1, 1))
    if wanted != num_tiles:
        raise ValueError(f"tile_tokens must hold the tokens of {wanted} tiles for this patches_grid, got {num_tiles}.")
    return grids


def _check_vector(vector: Any, name: str, dim: int) -> np.ndarray:
    vector = np.asarray(vector)
    if vector.shape != (dim,):
        raise ValueError(f"{name} must have shape ({dim},) like the tokens, got {vector.shape}.")
    return vector


def _with_newlines(grid: np.ndarray, newline: np.ndarray) -> np.ndarray:
    height, _, dim = grid.shape
    newlines = np.broadcast_to(newline, (height, 1, dim))
    # (height, width, dim) -> (height, width + 1, dim) -> (height * (width + 1), dim)
    return np.concatenate([grid, newlines], axis=1).reshape(-1, dim)


def stitch_vision_tokens(
    view_tokens: np.ndarray,
    tile_tokens: np.ndarray | None,
    patches_grid: Sequence[Sequence[int]] | np.ndarray,
    newline: np.ndarray,
    separator: np.ndarray,
) -> list[np.ndarray]:
    """Lay out projected tokens as DeepSeek-OCR's decoder reads them.

    For each page: the tiles, stitched to a mosaic, row by row; the global view, row by row; a newline token after each
    row of the mosaic and of the view; one separator at the end.

    Args:
        view_tokens (`np.ndarray` of shape `(pages, N, dim)`): projected tokens of the global views, row-major; the
            output `projected_tokens` of a graph. Views are square.
        tile_tokens (`np.ndarray` of shape `(tiles, n, dim)`, *optional*): the same for the tiles of all pages, page
            after page, each page's in row-major order. None if no page has tiles.
        patches_grid (`(pages, 2)` integers): columns and rows of each page's tiles; `(1, 1)` for a page without.
        newline (`np.ndarray` of shape `(dim,)`): the output `image_newline` of a graph.
        separator (`np.ndarray` of shape `(dim,)`): the output `view_separator` of a graph.

    Returns:
        for each page an array `(length, dim)`: its `vision_tokens`.

    Raises:
        `ValueError`: the shapes do not fit each other; the message names the argument.
    """
    views = _to_grids(np.asarray(view_tokens), "view_tokens")
    num_views, _, _, dim = views.shape
    tiles = np.empty((0, 1, 1, dim), views.dtype)
    if tile_tokens is not None and len(tile_tokens):
        tiles = _to_grids(np.asarray(tile_tokens), "tile_tokens")
    if tiles.shape[3] != dim:
        raise ValueError(f"tile_tokens must have {dim} channels like view_tokens, got {tiles.shape[3]}.")
    newline, separator = _check_vector(newline, "newline", dim), _check_vector(separator, "separator", dim)
    height, width = tiles.shape[1:3]
    sequences, first = [], 0
    for view, (columns, rows) in zip(views, _read_grids(patches_grid, num_views, len(tiles)), strict=True):
        parts = []
        if (columns, rows) != (1, 1):
            own = tiles[first : first + columns * rows].reshape(rows, columns, height, width, dim)
            first += columns * rows
            # (rows, columns, height, width, dim) -> (rows * height, columns * width, dim)
            mosaic = own.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, dim)
            parts.append(_with_newlines(mosaic, newline))
        parts += [_with_newlines(view, newline), separator[None]]
        sequences.append(np.concatenate(parts))
    return sequences
