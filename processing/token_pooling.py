"""Few and short vectors for late interaction: the tokens of each cell of a page averaged, projected and normalised.

Unusual: the projection is not trained. Its entries are random signs, which keep angles nearly as they are (Achlioptas,
*Database-friendly random projections*, 2003). They are the bits of a hash of the matrix's size, so every machine and
every version of every library makes the same matrix, and vectors of different runs can be compared. Help texts read
this module, so it imports neither torch nor numpy.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["VectorOptions", "make_vectors"]


@dataclass(frozen=True)
class VectorOptions:
    """How tokens become the vectors of `multi_vector`.

    Args:
        pool (`int`, defaults to 2): side of a cell, in tokens. The tokens of a cell become one vector.
        width (`int`, defaults to 128): length of a vector. Tokens that are not longer than that are not projected.

    Raises:
        `ValueError`: one of them is not positive.
    """

    pool: int = 2
    width: int = 128

    def __post_init__(self) -> None:
        for name in ("pool", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"vector_{name} must be a positive integer, got {value!r}.")

    def width_for(self, hidden: int) -> int:
        """Return the length of the vectors that tokens of length `hidden` become."""
        return min(self.width, hidden)

    def count_cells(self, rows: int, columns: int) -> int:
        """Return the number of cells of a grid of tokens. Those at the bottom and on the right may be smaller."""
        return -(-rows // self.pool) * -(-columns // self.pool)

    def make_projection(self, hidden: int) -> "np.ndarray | None":
        """Return the matrix that projects tokens of length `hidden`, or None if they are short enough.

        Returns:
            `numpy.ndarray` of shape `(hidden, width)`, float32: random signs divided by the root of `width`. They are
            the bits of SHAKE-256 of `"deepencoder HIDDEN x WIDTH"`, most significant bit first, where 1 stands for
            minus.
        """
        import numpy as np

        if hidden <= self.width:
            return None
        count = hidden * self.width
        stream = hashlib.shake_256(f"deepencoder {hidden} x {self.width}".encode()).digest(-(-count // 8))
        bits = np.unpackbits(np.frombuffer(stream, np.uint8))[:count].reshape(hidden, self.width)
        return (1 - 2 * bits.astype(np.float32)) / np.float32(math.sqrt(self.width))


def _sum_cells(grids: "torch.Tensor", pool: int) -> "torch.Tensor":
    """Sum tokens `(grids, h, w, dim)` over cells of `pool` x `pool`, and return `(grids * cells, dim)`."""
    count, height, width, dim = grids.shape
    tall, wide = min(pool, height), min(pool, width)
    rows, columns = -(-height // tall), -(-width // wide)
    padded = grids.new_zeros((count, rows * tall, columns * wide, dim))
    padded[:, :height, :width] = grids
    # (grids, rows * tall, columns * wide, dim) -> (grids, rows, columns, dim)
    sums = padded.reshape(count, rows, tall, columns, wide, dim).sum((2, 4))
    return sums.flatten(0, 2)


def make_vectors(
    view_tokens: "torch.Tensor",
    shown: "torch.Tensor",
    tile_tokens: "torch.Tensor | None",
    pool: int,
    projection: "torch.Tensor | None",
) -> "torch.Tensor":
    """Make the vectors of one page.

    Args:
        view_tokens (`torch.Tensor` of shape `(h * w, hidden)`): fused tokens of the global view.
        shown (`torch.Tensor` of shape `(h, w)`, bool): whether a token of the view shows any of the page. Those that
            show only padding do not count.
        tile_tokens (`torch.Tensor` of shape `(tiles, n, hidden)`, *optional*): fused tokens of the page's tiles, which
            are square and have no padding.
        pool (`int`): side of a cell, in tokens.
        projection (`torch.Tensor` of shape `(hidden, width)`, *optional*): see [`VectorOptions.make_projection`].

    Returns:
        `torch.Tensor` of shape `(cells, width)`, float32: a vector of length 1 for each cell, row by row, first those
        of the view and then those of each tile. It is 0 for a cell that shows nothing of the page.
    """
    import torch

    # (h * w, hidden) -> (h, w, hidden)
    view = view_tokens.float().unflatten(0, tuple(shown.shape)) * shown[..., None].to(view_tokens.device)
    cells = _sum_cells(view[None], pool)  # A sum points where the mean does, and its length is lost below.
    if tile_tokens is not None:
        side = math.isqrt(tile_tokens.shape[1])
        tiles = tile_tokens.to(cells.device).float().unflatten(1, (side, side))  # (tiles, side, side, hidden)
        cells = torch.cat([cells, _sum_cells(tiles, pool)])
    if projection is not None:
        cells = cells @ projection.to(cells.device)
    return cells / cells.norm(dim=-1, keepdim=True).clamp(min=1e-12)
