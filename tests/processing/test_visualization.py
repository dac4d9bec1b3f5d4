"""Pictures of what the encoder sees."""

import numpy as np
import torch
from PIL import Image

from deepencoder.processing.visualization import TILE_LINE, draw_encoding, features_to_colors, stitch_tiles


def test_tiles_are_stitched_row_major() -> None:
    tiles = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 3, 1)
    mosaic = stitch_tiles(tiles, (3, 2))
    assert mosaic.shape == (4, 9, 1)
    assert mosaic[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert mosaic[3, :, 0].tolist() == [3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_colours_follow_the_features() -> None:
    direction = torch.randn(16)
    grid = torch.linspace(-1, 1, 12)[:, None] * direction
    (colors,) = features_to_colors([grid.view(3, 4, 16)])
    assert colors.shape == (3, 4, 3) and colors.dtype == np.uint8
    first = colors[..., 0].ravel().astype(int)
    assert (np.diff(first) >= 0).all() or (np.diff(first) <= 0).all()
    assert abs(int(first[0]) - int(first[-1])) > 200
    same, again = features_to_colors([grid.view(3, 4, 16), grid.view(3, 4, 16)])
    assert np.array_equal(same, again)


def test_features_that_say_nothing_are_grey() -> None:
    for shape in ((2, 2, 8), (1, 1, 8)):
        (colors,) = features_to_colors([torch.ones(shape)])
        assert (np.abs(colors.astype(int) - 128) <= 1).all()


def test_panels_stand_side_by_side() -> None:
    view = Image.new("RGB", (64, 64), (10, 20, 30))
    alone = draw_encoding(view, torch.randn(4, 4, 8), height=64)
    assert alone.size == (64 * 2 + 16, 64)
    mosaic = Image.new("RGB", (128, 64))
    both = draw_encoding(view, torch.randn(4, 4, 8), mosaic, torch.randn(2, 4, 8), (2, 1), height=64)
    assert both.size == (64 * 2 + 128 * 2 + 16 * 3, 64)
    assert TILE_LINE in {color for _, color in both.getcolors(10**6)}
