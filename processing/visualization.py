"""Pictures of what the encoder sees: the views with their token grids, and the features as colours.

Unusual: the global view and the tiles share one colour scale, so the same colour means the same feature in both.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

__all__ = ["draw_encoding", "features_to_colors", "stitch_tiles"]

TOKEN_LINE = (190, 205, 235)
TILE_LINE = (214, 39, 40)
GAP = 16  # Pixels between panels.


def stitch_tiles(tiles: torch.Tensor, tile_grid: tuple[int, int]) -> torch.Tensor:
    """Join row-major tiles `(rows * columns, h, w, dim)` to a mosaic `(rows * h, columns * w, dim)`."""
    columns, rows = tile_grid
    _, height, width, dim = tiles.shape
    # (rows * columns, h, w, dim) -> (rows, h, columns, w, dim) -> (rows * h, columns * w, dim)
    split = tiles.reshape(rows, columns, height, width, dim).transpose(1, 2)
    return split.reshape(rows * height, columns * width, dim)


def features_to_colors(grids: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Map features to colours by their first three principal components, with one colour scale for all grids.

    Args:
        grids (sequence of `torch.Tensor` of shape `(h, w, dim)`): features of one or more views.

    Returns:
        for each grid a uint8 `numpy.ndarray` of shape `(h, w, 3)`. Components without variance come out grey.
    """
    flat = torch.cat([grid.reshape(-1, grid.shape[-1]) for grid in grids]).float().cpu()
    centered = flat - flat.mean(dim=0)
    _, singular, directions = torch.linalg.svd(centered, full_matrices=False)
    components = torch.zeros(len(flat), 3)
    count = min(3, len(singular))
    # The sign of a direction is arbitrary. Its largest entry is made positive, so that one input gives one picture.
    directions = directions[:count]
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    components[:, :count] = centered @ (directions * signs).T
    spread = components.abs().quantile(0.98, dim=0).clamp_min(1e-12)
    colors = ((components / spread).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).numpy()
    sizes = [grid.shape[0] * grid.shape[1] for grid in grids]
    return [
        part.reshape(*grid.shape[:2], 3)
        for part, grid in zip(np.split(colors, np.cumsum(sizes)[:-1]), grids, strict=True)
    ]


def _draw_lines(image: Image.Image, columns: int, rows: int, color: tuple[int, int, int], width: int = 1) -> None:
    draw = ImageDraw.Draw(image)
    for column in range(columns + 1):
        x = min(round(column * image.width / columns), image.width - 1)
        draw.line([(x, 0), (x, image.height)], fill=color, width=width)
    for row in range(rows + 1):
        y = min(round(row * image.height / rows), image.height - 1)
        draw.line([(0, y), (image.width, y)], fill=color, width=width)


def draw_encoding(
    view: Image.Image,
    view_features: torch.Tensor,
    mosaic: Image.Image | None = None,
    mosaic_features: torch.Tensor | None = None,
    tile_grid: tuple[int, int] = (1, 1),
    height: int = 768,
) -> Image.Image:
    """Draw the views of one image and their features side by side.

    Args:
        view (`PIL.Image`): the global view, padding included; drawn with its token grid.
        view_features (`torch.Tensor` of shape `(h, w, dim)`): features of the global view, drawn as colours.
        mosaic (`PIL.Image`, *optional*): the stitched tiles, drawn with their token grid and tile borders.
        mosaic_features (`torch.Tensor` of shape `(h, w, dim)`, *optional*): features of the mosaic, drawn as colours.
        tile_grid (`tuple[int, int]`, defaults to `(1, 1)`): columns and rows of tiles in the mosaic.
        height (`int`, defaults to 768): height of the picture in pixels.

    Returns:
        `PIL.Image`: the views and their features in a row.
    """
    sources = [(view, view_features, (1, 1))]
    if mosaic is not None and mosaic_features is not None:
        sources.append((mosaic, mosaic_features, tile_grid))
    colors = features_to_colors([features for _, features, _ in sources])
    panels = []
    for (image, features, (columns, rows)), color in zip(sources, colors, strict=True):
        size = (max(1, round(image.width * height / image.height)), height)
        page = image.resize(size, Image.Resampling.LANCZOS)
        _draw_lines(page, features.shape[1], features.shape[0], TOKEN_LINE)
        feature_map = Image.fromarray(color).resize(size, Image.Resampling.NEAREST)
        if (columns, rows) != (1, 1):
            _draw_lines(page, columns, rows, TILE_LINE, width=3)
            _draw_lines(feature_map, columns, rows, (255, 255, 255), width=2)
        panels += [page, feature_map]
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + GAP
    return picture
