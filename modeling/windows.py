"""Cutting a grid of positions into attention windows, and putting the windows back together.

Unusual: no tensor is padded, cut or reshaped. A cut is a set of indices: for each group of windows the positions that
are its queries and its keys, and for each position of the grid its place among the outputs. Padding is the index one
past the last position, `height * width`.
"""

import itertools
from typing import NamedTuple

import torch
from torch.nn.functional import pad

__all__ = ["WindowCache", "WindowGroup", "Windows", "cut_windows", "group_windows", "window_positions"]


class WindowGroup(NamedTuple):
    """Windows that have equally many queries.

    Attributes:
        rows, columns (`int`): size of the block of queries at the top left of each window.
        queries (`torch.Tensor` of shape `(windows * rows * columns,)`): index in the row-major grid of each query.
        keys (`torch.Tensor` of shape `(windows * window_size ** 2,)`): index of each key, window by window.
    """

    rows: int
    columns: int
    queries: torch.Tensor
    keys: torch.Tensor


class Windows(NamedTuple):
    """A grid that is cut into windows.

    Attributes:
        groups (`tuple[WindowGroup, ...]`): all windows, in one or more groups.
        places (`torch.Tensor` of shape `(height * width,)`): for each position of the grid, the index of its query
            among the queries of all groups.
        has_padding (`bool`): whether any window reaches beyond the grid.
    """

    groups: tuple[WindowGroup, ...]
    places: torch.Tensor
    has_padding: bool


def _cut_positions(grid: tuple[int, int], window_size: int, device: torch.device | None) -> torch.Tensor:
    """Return the index of each position of each window, `(windows down, windows across, size, size)`."""
    height, width = grid
    down, across = -(-height // window_size), -(-width // window_size)
    positions = torch.arange(height * width, device=device).view(height, width)
    padding = (0, across * window_size - width, 0, down * window_size - height)
    positions = pad(positions, padding, value=height * width)
    # (down * size, across * size) -> (down, size, across, size) -> (down, across, size, size)
    return positions.view(down, window_size, across, window_size).transpose(1, 2)


def window_positions(grid: tuple[int, int], window_size: int) -> torch.Tensor:
    """Say which patch each position of each attention window is.

    The attention weights of a windowed block, `(batch * windows, heads, size ** 2, size ** 2)`, list the windows of an
    image in the same order, row by row, and the queries and keys of a window in the same order, row by row.

    Args:
        grid (`tuple[int, int]`): rows and columns of patches: height and width of the image over the patch size.
        window_size (`int`): `window_size` of the [`SamEncoderConfig`].

    Returns:
        `torch.LongTensor` of shape `(windows, window_size ** 2)`: indices of patches in the row-major grid, so that
        `divmod(index, grid[1])` is the row and column; -1 for padding at the bottom or on the right. The first
        position of a window is its top left patch, and never padding.

    Raises:
        `ValueError`: `grid` or `window_size` is not positive.
    """
    if window_size < 1 or min(grid) < 1:
        raise ValueError(f"grid and window_size must be positive, got {grid} and {window_size}.")
    positions = _cut_positions(grid, window_size, None).flatten(2).flatten(0, 1)
    return positions.masked_fill(positions == grid[0] * grid[1], -1)


def _has_padding(grid: tuple[int, int], window_size: int) -> bool:
    return any(side % window_size for side in grid)


def cut_windows(grid: tuple[int, int], window_size: int, device: torch.device | None = None) -> Windows:
    """Cut a grid of `(height, width)` positions into square windows, padded at the bottom and on the right.

    Padded positions are queries like any other, so that all windows form one group.
    """
    height, width = grid
    positions = _cut_positions(grid, window_size, device)
    down, across = positions.shape[:2]
    places = torch.arange(positions.numel(), device=device).view(down, across, window_size, window_size)
    # (down, across, size, size) -> (down, size, across, size) -> (down * size, across * size)
    places = places.transpose(1, 2).reshape(down * window_size, across * window_size)
    flat = positions.reshape(-1)
    group = WindowGroup(window_size, window_size, flat, flat)
    return Windows((group,), places[:height, :width].reshape(-1), _has_padding(grid, window_size))


def group_windows(grid: tuple[int, int], window_size: int, device: torch.device | None = None) -> Windows:
    """Cut as [`cut_windows`] does, but without the queries of padding.

    The windows form up to four groups: whole windows, those at the right edge, those at the bottom, and the corner.
    """
    positions = _cut_positions(grid, window_size, device)
    parts: list[list[tuple[slice, int]]] = []  # For each axis: which windows, and how many positions they have.
    for side in grid:
        whole, rest = side // window_size, side % window_size
        inside, at_the_edge = (slice(0, whole), window_size), (slice(whole, None), rest)
        parts.append([inside] * (whole > 0) + [at_the_edge] * (rest > 0))
    groups = []
    for (down, rows), (across, columns) in itertools.product(*parts):
        windows = positions[down, across]  # (windows down, windows across, size, size)
        groups.append(WindowGroup(rows, columns, windows[..., :rows, :columns].flatten(), windows.flatten()))
    places = torch.cat([group.queries for group in groups]).argsort()
    return Windows(tuple(groups), places, _has_padding(grid, window_size))


class WindowCache:
    """Cuts each grid that a forward pass meets once, when it is first needed.

    Args:
        window_size (`int`): side of a window in positions.
    """

    def __init__(self, window_size: int) -> None:
        self.window_size = window_size
        self._known: dict[tuple[tuple[int, int], torch.device, bool], Windows] = {}

    def get(self, grid: tuple[int, int], device: torch.device, grouped: bool = False) -> Windows:
        """Return the cut of a grid, by [`group_windows`] if `grouped` and else by [`cut_windows`]."""
        key = (grid, device, grouped)
        if key not in self._known:
            self._known[key] = (group_windows if grouped else cut_windows)(grid, self.window_size, device)
        return self._known[key]
