"""Tile grids and token counts: arithmetic on sizes, without pixels.

Unusual: the grid with the closest aspect ratio wins. Of two equally close grids the larger one wins only if the image
has more than half as many pixels as that grid.
"""

from functools import lru_cache

__all__ = ["MAX_PATCHES", "TOKEN_SCHEMES", "choose_tile_grid", "count_image_tokens", "tile_grid_candidates"]

MAX_PATCHES = 1024
"""Largest number of tiles of a page. Known deployments use up to 32. For 1024 tiles there are about 7,000 grids, and
all of them are compared for each page."""


@lru_cache(maxsize=64)
def tile_grid_candidates(min_patches: int, max_patches: int) -> tuple[tuple[int, int], ...]:
    """Return every grid `(columns, rows)` of `min_patches` to `max_patches` tiles, grids of fewer tiles first."""
    grids = [
        (columns, rows)
        for columns in range(1, max_patches + 1)
        for rows in range(-(-min_patches // columns), max_patches // columns + 1)
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_tile_grid(height: int, width: int, min_patches: int, max_patches: int, tile_size: int) -> tuple[int, int]:
    """Choose the grid into which an image is cut.

    Args:
        height, width (`int`): size of the image in pixels.
        min_patches, max_patches (`int`): smallest and largest number of tiles.
        tile_size (`int`): side of a tile in pixels.

    Returns:
        `tuple[int, int]`: columns and rows of tiles; `(1, 1)` for an image that fits into one tile and is not cut.
    """
    if width <= tile_size and height <= tile_size:
        return (1, 1)
    aspect_ratio = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in tile_grid_candidates(min_patches, max_patches):
        distance = abs(aspect_ratio - columns / rows)
        large_enough = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and large_enough):
            best, best_distance = (columns, rows), distance
    return best


def _count_cells(view_grid: tuple[int, int], tile_grid: tuple[int, int], tile_tokens: tuple[int, int]) -> int:
    columns, rows = view_grid
    total = (columns + 1) * rows + 1
    if tile_grid != (1, 1):
        total += (tile_grid[0] * tile_tokens[0] + 1) * tile_grid[1] * tile_tokens[1]
    return total


def _count_queries(view_grid: tuple[int, int], tile_grid: tuple[int, int], tile_tokens: tuple[int, int]) -> int:
    tiles = tile_grid[0] * tile_grid[1] if tile_grid != (1, 1) else 0
    return tiles * tile_tokens[0] * tile_tokens[1] + view_grid[0] * view_grid[1] + 1


TOKEN_SCHEMES = {"cells": _count_cells, "queries": _count_queries}
"""What the vision tokens of a page are, by the name that the image processor's field `token_scheme` has, and how many
there are: the cells of each view's grid in rows, a newline after each row (DeepSeek-OCR); or as many learned queries
of each view as its grid has cells (DeepSeek-OCR-2). A separator follows in either case."""


def count_image_tokens(
    view_grid: tuple[int, int],
    tile_grid: tuple[int, int],
    tile_tokens: tuple[int, int],
    scheme: str = "cells",
) -> int:
    """Return the number of vision tokens of an image, newlines and separator included.

    Args:
        view_grid (`tuple[int, int]`): columns and rows of cells of the global view.
        tile_grid (`tuple[int, int]`): columns and rows of tiles; `(1, 1)` for an image without tiles.
        tile_tokens (`tuple[int, int]`): columns and rows of cells of a tile.
        scheme (`str`): one of [`TOKEN_SCHEMES`].

    Returns:
        `int`: the length of the image's `vision_tokens`.
    """
    return TOKEN_SCHEMES[scheme](view_grid, tile_grid, tile_tokens)
