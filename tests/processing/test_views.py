"""Views and tiles as arrays; `test_image_processing.py` compares their pixels with Pillow's."""

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import PILImageResampling

from deepencoder.processing.normalization import Normalization
from deepencoder.processing.views import make_global_views, make_tiles

NORMALIZATION = Normalization.from_fields(True, 1 / 255, True, 0.5, 0.5)
BICUBIC = PILImageResampling.BICUBIC
RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (20, 30 + width, 3), dtype=np.uint8)) for width in range(3)]


def test_views_keep_their_own_size_without_a_size() -> None:
    views = make_global_views(IMAGES, None, BICUBIC, None, None)
    assert isinstance(views, list)
    for image, view in zip(IMAGES, views, strict=True):
        assert np.array_equal(view, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("color", [None, (1, 2, 3)])
def test_views_are_squashed_or_padded(color: tuple[int, ...] | None) -> None:
    views = make_global_views(IMAGES, (24, 24), BICUBIC, color, None)
    assert isinstance(views, np.ndarray) and views.shape == (3, 3, 24, 24) and views.dtype == np.uint8
    assert (color is None) == (views[0, :, 0, 0].tolist() != [1, 2, 3])
    normalised = make_global_views(IMAGES, (24, 24), BICUBIC, color, NORMALIZATION)
    assert np.allclose(normalised, views / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("normalization", [None, NORMALIZATION])
def test_tiles_are_cut_row_by_row(normalization: Normalization | None) -> None:
    tiles = make_tiles(IMAGES, [(3, 2), (1, 1), (1, 2)], 8, BICUBIC, normalization)
    assert tiles.shape == (8, 3, 8, 8)
    for image, first, columns, rows in ((IMAGES[0], 0, 3, 2), (IMAGES[2], 6, 1, 2)):
        pixels = np.asarray(image.resize((8 * columns, 8 * rows), BICUBIC)).transpose(2, 0, 1)
        for index in range(columns * rows):
            top, left = 8 * (index // columns), 8 * (index % columns)
            expected = pixels[:, top : top + 8, left : left + 8]
            found = tiles[first + index]
            assert np.allclose(found, expected if normalization is None else expected / 127.5 - 1, atol=1e-6)
