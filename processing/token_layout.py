"""Where each vision token of a page lies: its kind, and its box in pixels of the page.

Unusual: the cells of a view form a grid, and those of the stitched tiles do, too, so everything follows from two axes.
An axis holds the edges of its cells in pixels of the page, where a cell of padding has no width. Learned queries have
no cells: the box of a query is the part of the page that its view shows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .placement import PageGeometry, check_page_size

__all__ = ["TokenLayout", "find_view_padding", "lay_out_tokens", "to_grid"]

MAX_TOKENS = 2**21
"""Largest number of tokens of a layout, which then takes 150 MB. The largest views and tiles have far fewer."""
MAX_MAP_PIXELS = 2**27
"""Largest number of pixels of a map, which then takes 0.5 GB. Pillow warns of a page of 2**26.4 pixels."""
KINDS = "U9"  # numpy's type of strings as long as "separator".


@dataclass(frozen=True)
class _Axis:
    """The cells of a view, or of the tiles' mosaic, along one side of the page.

    Args:
        edges: `(n + 1,)`, in pixels of the page, ascending from 0 to the length of its side.
        is_padding: `(n,)`, whether no pixel of the page is in a cell.
    """

    edges: np.ndarray
    is_padding: np.ndarray


def _make_axis(edges: np.ndarray, start: int, length: int, page_length: int) -> _Axis:
    """Map the edges of cells `(n + 1,)`, in pixels of a view that shows the page from `start` on over `length`."""
    inside = np.clip(edges - start, 0, length)
    return _Axis(inside * page_length / max(length, 1), inside[:-1] == inside[1:])


def _view_axes(geometry: PageGeometry) -> tuple[_Axis, _Axis]:
    """Return the rows and the columns of cells of the global view."""
    place, stride = geometry.placement, geometry.stride
    columns, rows = geometry.view_tokens
    spans = ((rows, place.top, place.height), (columns, place.left, place.width))
    return tuple(  # type: ignore[return-value]  # Two.
        # A stride beyond the side, which may be of any size, is one cell.
        _make_axis(np.minimum(np.arange(cells + 1) * min(stride, side), side), start, length, page_side)
        for (cells, start, length), side, page_side in zip(spans, geometry.view_size, geometry.page_size, strict=True)
    )


def _mosaic_axes(geometry: PageGeometry) -> tuple[_Axis, _Axis]:
    """Return the rows and the columns of cells of the stitched tiles; the last cell of each tile may be smaller."""
    columns, rows = geometry.tile_grid
    cells = np.arange(geometry.tile_tokens) * min(geometry.stride, geometry.tile_size)
    axes = []
    for tiles, page_side in zip((rows, columns), geometry.page_size, strict=True):
        starts = np.arange(tiles)[:, None] * geometry.tile_size + cells
        length = tiles * geometry.tile_size
        axes.append(_make_axis(np.append(starts, length), 0, length, page_side))
    return axes[0], axes[1]


@dataclass(frozen=True)
class _Part:
    """A part of the sequence, as arrays with one row for each row of tokens, and a newline at its end."""

    kind: np.ndarray
    boxes: np.ndarray
    is_padding: np.ndarray

    @classmethod
    def from_axes(cls, kind: str, rows: _Axis, columns: _Axis) -> "_Part":
        height, width = len(rows.is_padding), len(columns.is_padding)
        kinds = np.full((height, width + 1), kind, KINDS)
        kinds[:, width] = "newline"
        boxes = np.full((height, width + 1, 4), np.nan)
        for side, edges in enumerate((columns.edges[:-1], rows.edges[:-1], columns.edges[1:], rows.edges[1:])):
            boxes[:, :width, side] = edges if side % 2 == 0 else edges[:, None]
        padding = np.zeros((height, width + 1), bool)
        padding[:, :width] = rows.is_padding[:, None] | columns.is_padding
        return cls(kinds, boxes, padding)

    def index(self, first: int) -> np.ndarray:
        """Return the positions `(height, width)` of its tokens, without newlines, if it begins at `first`."""
        return first + np.arange(self.kind.size).reshape(self.kind.shape)[:, :-1]


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Which part of a page each of its vision tokens is.

    A token's box is its cell of the grid: 64 x 64 pixels of a view, mapped back to the page and clipped to it. What
    the token has seen is larger, since attention is global.

    Args:
        page_size (`tuple[int, int]`): height and width of the page in pixels.
        kind (`numpy.ndarray` of shape `(L,)`, strings): `"tile"`, `"view"`, `"newline"` or `"separator"` for each
            token, in the order of `vision_tokens`. The learned queries of a [`DeepEncoderV2`] are `"query"`.
        boxes (`numpy.ndarray` of shape `(L, 4)`, float64): left, top, right and bottom of each token in pixels of the
            page. NaN for newlines and the separator; an empty box on the page's edge for a token of padding. A query
            has no place of its own: its box is all that its tile shows, or the whole page for the global view.
        is_padding (`numpy.ndarray` of shape `(L,)`, bool): whether no pixel of the page is in the token's cell. False
            for newlines and the separator.
        view_index (`numpy.ndarray` of shape `(h, w)`, integers): position in the sequence of each token of the global
            view. `view_index.ravel()` belongs to the rows of `last_hidden_state`. `(1, n)` for queries.
        tile_index (`numpy.ndarray` of shape `(T, h_t, w_t)`, integers): the same for the tiles of this page; `T` is 0
            for a page without tiles. `tile_index[t].ravel()` belongs to the rows of `local_last_hidden_state[t]`.
            `(T, 1, m)` for queries.
        mosaic_index (`numpy.ndarray` of shape `(rows * h_t, columns * w_t)`, integers): the same with the tiles
            stitched; `(0, 0)` without tiles, and for queries.
    """

    page_size: tuple[int, int]
    kind: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)
    is_padding: np.ndarray = field(repr=False)
    view_index: np.ndarray = field(repr=False)
    tile_index: np.ndarray = field(repr=False)
    mosaic_index: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def has_queries(self) -> bool:
        """Whether the tokens are learned queries, which are no cells of the page."""
        return bool(len(self.kind)) and self.kind[0] == "query"

    def grid_index(self, kind: str) -> np.ndarray:
        """Return `view_index` for `"view"` and `mosaic_index` for `"tile"`.

        Raises:
            `ValueError`: `kind` is neither, the page has no tiles, or its tokens are queries.
        """
        if self.has_queries:
            raise ValueError("The tokens of this page are learned queries, which have no place on the page.")
        grids = {"view": self.view_index, "tile": self.mosaic_index}
        if kind not in grids:
            raise ValueError(f"kind must be 'view' or 'tile', got {kind!r}.")
        if not grids[kind].size:
            raise ValueError(f"kind={kind!r}: this page has no tiles.")
        return grids[kind]

    def find_token(self, x: float, y: float, kind: str = "view") -> int:
        """Return the position in the sequence of the token whose box holds a point.

        Args:
            x, y (`float`): the point in pixels of the page, from its left and from its top.
            kind (`str`, defaults to `"view"`): whether to look among the tokens of the `"view"` or of the `"tile"`s.

        Raises:
            `ValueError`: the point is not on the page, no token shows it, or the page has no tiles.
        """
        index = self.grid_index(kind)
        left, top, right, bottom = np.moveaxis(self.boxes[index], -1, 0)
        held = index[(left <= x) & (x < right) & (top <= y) & (y < bottom)]
        if not len(held):
            height, width = self.page_size
            raise ValueError(f"x and y must be a point of a page of {width} x {height} pixels, got {x} and {y}.")
        return int(held[0])

    def rescale(self, height: int, width: int) -> "TokenLayout":
        """Return the layout for the same page at another size in pixels, such as a thumbnail."""
        height, width = check_page_size(height, width)
        scale = np.array([width / self.page_size[1], height / self.page_size[0]] * 2)
        return replace(self, page_size=(height, width), boxes=self.boxes * scale)

    def map_to_page(self, values: Any, kind: str = "view", smooth: bool = False) -> np.ndarray:
        """Spread values of tokens over the pixels of the page, for example to draw a heat map.

        Args:
            values (array or tensor of shape `(h, w)`): a value for each token of the global view, or of the tiles'
                mosaic. The values of padding are not used.
            kind (`str`, defaults to `"view"`): which of them, `"view"` or `"tile"`.
            smooth (`bool`, defaults to `False`): whether to interpolate linearly between the centres of the boxes. A
                pixel otherwise has the value of the token whose box holds its centre.

        Returns:
            `numpy.ndarray` of shape `(height, width)`, float32: one value for each pixel of the page.

        Raises:
            `ValueError`: `values` has another shape, the page has no tiles, no token shows it, or it has more than
                2**27 pixels.
        """
        index = self.grid_index(kind)
        grid = to_grid(values, index.shape)
        height, width = self.page_size
        if height * width > MAX_MAP_PIXELS:
            raise ValueError(f"page_size: a map of {width} x {height} pixels has more than {MAX_MAP_PIXELS}.")
        rows, columns = self.boxes[index[:, 0]][:, [1, 3]], self.boxes[index[0]][:, [0, 2]]  # (h, 2), (w, 2)
        shown = [side[:, 0] < side[:, 1] for side in (rows, columns)]
        if not all(side.any() for side in shown):
            raise ValueError("values: no token shows the page, which is too long and thin for its view.")
        grid = grid[shown[0]][:, shown[1]]
        spread = _spread_smoothly if smooth else _spread_nearest
        return spread(grid, rows[shown[0]], columns[shown[1]], self.page_size)


def to_grid(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return values as float32; a tensor may have any dtype and device, and a gradient.

    Raises:
        `ValueError`: they have another shape.
    """
    if hasattr(values, "detach"):  # A tensor of torch, which this module does not import.
        values = values.detach().float().cpu()
    grid = np.asarray(values)
    if grid.shape != shape:
        raise ValueError(f"values must have the shape {shape} of the tokens, got {grid.shape}.")
    return grid.astype(np.float32)


def _spread_nearest(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Repeat values `(h, w)` over pixels `(height, width)`, given the first and last edge of rows and columns."""
    # The centre of pixel i is i + 0.5, so the first pixel that begins a cell is its edge - 0.5, rounded up.
    spans = [np.diff(np.ceil(side - 0.5).astype(int))[:, 0] for side in (columns, rows)]
    return grid.repeat(spans[0], axis=1).repeat(spans[1], axis=0)


def _spread_smoothly(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate values `(h, w)` at the pixels `(height, width)`, given the edges of rows and columns."""
    height, width = size
    tall = np.empty((height, grid.shape[1]), np.float32)
    down, across = np.arange(height) + 0.5, np.arange(width) + 0.5
    for column, values in enumerate(grid.T):
        tall[:, column] = np.interp(down, rows.mean(axis=1), values)
    spread = np.empty((height, width), np.float32)
    for row, values in enumerate(tall):
        spread[row] = np.interp(across, columns.mean(axis=1), values)
    return spread


def _check_count(geometry: PageGeometry) -> None:
    if geometry.num_tokens > MAX_TOKENS:
        height, width = geometry.page_size
        raise ValueError(
            f"height={height} and width={width} give {geometry.num_tokens} tokens of {geometry.stride} x "
            f"{geometry.stride} pixels, more than {MAX_TOKENS}."
        )


def find_view_padding(geometry: PageGeometry) -> np.ndarray:
    """Return for each token of the global view, `(h, w)`, whether no pixel of the page is in it.

    Raises:
        `ValueError`: the page has more than [`MAX_TOKENS`] tokens.
    """
    _check_count(geometry)
    if geometry.token_scheme == "queries":
        columns_of_queries, rows_of_queries = geometry.view_tokens
        return np.zeros((rows_of_queries, columns_of_queries), bool)  # A query has read all of the view.
    rows, columns = _view_axes(geometry)
    return rows.is_padding[:, None] | columns.is_padding


def _join(parts: Iterable[np.ndarray], end: Any) -> np.ndarray:
    """Join arrays `(h, w + 1, ...)` to a sequence, and append the separator's value."""
    rows = [part.reshape(-1, *part.shape[2:]) for part in parts]
    return np.concatenate([*rows, np.full((1, *rows[0].shape[1:]), end, rows[0].dtype)])


def lay_out_tokens(geometry: PageGeometry) -> TokenLayout:
    """Locate the tokens of a page: the tiles', the view's, and one separator. Cells have newlines after each row.

    Raises:
        `ValueError`: the page has more than [`MAX_TOKENS`] tokens.
    """
    _check_count(geometry)
    return _LAYOUTS[geometry.token_scheme](geometry)


def _lay_out_cells(geometry: PageGeometry) -> TokenLayout:
    parts = [_Part.from_axes("view", *_view_axes(geometry))]
    side = geometry.tile_tokens
    mosaic_index, tile_index = np.zeros((0, 0), int), np.zeros((0, side, side), int)
    if geometry.num_tiles:
        parts.insert(0, _Part.from_axes("tile", *_mosaic_axes(geometry)))
        mosaic_index = parts[0].index(0)
        columns, rows = geometry.tile_grid
        # (rows * side, columns * side) -> (rows, columns, side, side) -> (tiles, side, side)
        split = mosaic_index.reshape(rows, side, columns, side).transpose(0, 2, 1, 3)
        tile_index = split.reshape(geometry.num_tiles, side, side)
    return TokenLayout(
        geometry.page_size,
        kind=_join((part.kind for part in parts), "separator"),
        boxes=_join((part.boxes for part in parts), np.nan),
        is_padding=_join((part.is_padding for part in parts), False),
        view_index=parts[-1].index(sum(part.kind.size for part in parts[:-1])),
        tile_index=tile_index,
        mosaic_index=mosaic_index,
    )


def _lay_out_queries(geometry: PageGeometry) -> TokenLayout:
    height, width = geometry.page_size
    columns, rows = geometry.tile_grid
    tiles, side = geometry.num_tiles, geometry.tile_tokens
    row, column = np.divmod(np.arange(tiles), columns)
    # (4, tiles) -> (tiles, 4), the page's parts that the tiles show
    shown = np.stack([column, row, column + 1, row + 1]).T * np.array([width / columns, height / rows] * 2)
    view_columns, view_rows = geometry.view_tokens
    counts = np.array([side * side] * tiles + [view_columns * view_rows])
    boxes = np.concatenate([shown, [[0, 0, width, height]]]).repeat(counts, axis=0)
    total = len(boxes)
    first = tiles * side * side
    return TokenLayout(
        geometry.page_size,
        kind=np.append(np.full(total, "query", KINDS), np.array("separator", KINDS)),
        boxes=np.concatenate([boxes, np.full((1, 4), np.nan)]),
        is_padding=np.zeros(total + 1, bool),
        view_index=np.arange(first, total)[None],
        tile_index=np.arange(first).reshape(tiles, 1, side * side),
        mosaic_index=np.zeros((0, 0), int),
    )


_LAYOUTS = {"cells": _lay_out_cells, "queries": _lay_out_queries}
