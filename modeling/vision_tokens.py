"""How the tokens of an image's views become the sequence that a decoder reads: DeepSeek-OCR's, in rows.

```
 tile 1 | tile 2     the tiles, stitched to a mosaic of columns x rows tiles: row by row, a newline token after each
 -------+-------     row of the **mosaic** (not of each tile)
 tile 3 | tile 4
 ---------------
   global view       row by row, a newline token after each row
 ---------------
   separator         one token
```

Tokens of DeepSeek-OCR-2 form no rows: those of each tile, then those of the view, then the separator.
"""

from collections.abc import Sequence
from reprlib import repr as shorten
from typing import Any

import torch

__all__ = ["join_vision_tokens", "lay_out_vision_tokens", "read_tile_grids"]


def lay_out_vision_tokens(
    view: torch.Tensor,
    tiles: torch.Tensor | None,
    tile_grid: tuple[int, int],
    newline: torch.Tensor,
    separator: torch.Tensor,
) -> torch.Tensor:
    """Lay out the tokens of one image: the tiles' rows, the view's rows, a newline after each row, one separator.

    Images without tiles have equally many tokens, and may be laid out together.

    Args:
        view (`torch.Tensor` of shape `(height, width, dim)`, or `(batch, height, width, dim)` without tiles): tokens
            of the global view.
        tiles (`torch.Tensor` of shape `(columns * rows, h, w, dim)`, *optional*): tokens of the tiles, row-major.
        tile_grid (`tuple[int, int]`): columns and rows of tiles.
        newline (`torch.Tensor` of shape `(dim,)`): the token after each row of the mosaic and of the global view.
        separator (`torch.Tensor` of shape `(dim,)`): the last token.

    Returns:
        `torch.Tensor` of shape `(L, dim)`, or `(batch, L, dim)`.
    """
    batch, dim = view.shape[:-3], view.shape[-1]
    parts = [view]
    if tiles is not None:
        columns, rows = tile_grid
        height, width = tiles.shape[1:3]
        mosaic = tiles.reshape(rows, columns, height, width, dim).transpose(1, 2)
        # (rows, height, columns, width, dim) -> (rows * height, columns * width, dim)
        parts.insert(0, mosaic.reshape(rows * height, columns * width, dim))
    sequence = []
    for part in parts:
        with_newlines = torch.cat([part, newline.expand(*part.shape[:-2], 1, dim)], dim=-2)
        # (.., rows, columns + 1, dim) -> (.., rows * (columns + 1), dim)
        sequence.append(with_newlines.flatten(-3, -2))
    sequence.append(separator.expand(*batch, 1, dim))
    return torch.cat(sequence, dim=-2)


def join_vision_tokens(view: torch.Tensor, tiles: torch.Tensor | None, separator: torch.Tensor) -> torch.Tensor:
    """Join the tokens of one image that form no grid: those of each tile, those of the view, one separator.

    Args:
        view (`torch.Tensor` of shape `(n, dim)`, or `(batch, n, dim)` without tiles): tokens of the global view.
        tiles (`torch.Tensor` of shape `(tiles, m, dim)`, *optional*): tokens of the tiles, tile after tile.
        separator (`torch.Tensor` of shape `(dim,)`): the last token.

    Returns:
        `torch.Tensor` of shape `(L, dim)`, or `(batch, L, dim)`.
    """
    parts = [view, separator.expand(*view.shape[:-2], 1, -1)]
    if tiles is not None:
        parts.insert(0, tiles.flatten(0, 1))  # (tiles, m, dim) -> (tiles * m, dim)
    return torch.cat(parts, dim=-2)


def read_tile_grids(
    batch_size: int,
    num_tiles: int,
    patches_grid: torch.Tensor | Sequence[Sequence[int]] | None,
    num_local_patches: torch.Tensor | Sequence[int] | None,
) -> tuple[list[tuple[int, int]], list[int]]:
    """Check how a batch's tiles are described; return the `(columns, rows)` and the number of tiles of each image.

    An image has tiles if its grid has more than one cell, or if `num_local_patches` says that its one cell is a tile.

    Raises:
        `ValueError`: `patches_grid` is missing, is not as long as the batch, is not positive, or disagrees with
            `num_local_patches` or with the number of tiles.
    """
    if patches_grid is None:
        raise ValueError(f"patches_grid is required with pixel_values_local ({num_tiles} tiles), got None.")
    cells: Any = patches_grid.tolist() if isinstance(patches_grid, torch.Tensor) else patches_grid
    try:
        grids: list[tuple[int, int]] | None = [(int(columns), int(rows)) for columns, rows in cells]
    except (TypeError, ValueError, OverflowError):
        grids = None
    if grids is None or len(grids) != batch_size:
        raise ValueError(
            f"patches_grid must hold {batch_size} pairs (columns, rows), one for each image, got {shorten(cells)}."
        )
    if any(min(grid) < 1 or grid != tuple(cell) for grid, cell in zip(grids, cells, strict=True)):
        raise ValueError(f"patches_grid must hold positive integers, got {shorten(cells)}.")
    counts = [columns * rows if columns * rows > 1 else 0 for columns, rows in grids]
    if isinstance(num_local_patches, torch.Tensor) and torch.compiler.is_compiling():
        num_local_patches = None  # It is only a check, and reading a tensor's numbers would break the graph.
    if num_local_patches is not None:
        given: Any = num_local_patches.tolist() if isinstance(num_local_patches, torch.Tensor) else num_local_patches
        if not hasattr(given, "__len__") or len(given) != batch_size:
            raise ValueError(
                f"num_local_patches must hold {batch_size} numbers, one for each image, got {shorten(given)}."
            )
        for index, (count, tiles, grid) in enumerate(zip(counts, given, grids, strict=True)):
            if tiles != count and not (grid == (1, 1) and tiles == 1):
                raise ValueError(
                    f"num_local_patches[{index}] must be {shorten(count)} for patches_grid[{index}]={shorten(grid)}, "
                    f"got {shorten(tiles)}."
                )
        counts = [int(tiles) for tiles in given]
    if sum(counts) != num_tiles:
        raise ValueError(
            f"pixel_values_local must hold {shorten(sum(counts))} tiles for patches_grid={shorten(cells)}, got "
            f"{num_tiles}."
        )
    return grids, counts
