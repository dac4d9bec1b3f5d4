"""Views and tiles as arrays; `test_image_processing.py` compares their pixels with Pillow's."""

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import PILImageResampling

from deepencoder.processing import views
from deepencoder.processing.normalization import Normalization
from deepencoder.processing.views import make_global_views, make_tiles, resize_planes

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


def make_page(kind: str) -> Image.Image:
    """A grey page, one in colour, or a grey page with a single pixel in colour beside those of the sample."""
    pixels = RNG.integers(0, 256, (301, 417, 1), dtype=np.uint8).repeat(3, axis=2)
    if kind == "colour":
        pixels[..., 1] //= 2
    if kind == "one pixel":
        pixels[150, 201] = (9, 9, 10)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["grey", "colour", "one pixel"])
@pytest.mark.parametrize("resample", list(PILImageResampling), ids=lambda resample: resample.name)
@pytest.mark.parametrize("size", [(64, 90), (600, 100), (417, 301)], ids=str)
def test_grey_pages_have_the_pixels_of_pages_in_colour(
    kind: str, resample: PILImageResampling, size: tuple[int, int]
) -> None:
    page = make_page(kind)
    expected = np.asarray(page.resize(size, resample)).transpose(2, 0, 1)
    assert np.array_equal(np.stack(resize_planes(page, size, resample)), expected)


@pytest.mark.parametrize(("kind", "bands"), [("grey", ["L"]), ("colour", ["RGB"]), ("one pixel", ["RGB"])])
def test_one_channel_of_grey_pages_is_resized(kind: str, bands: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page, resized, resize = make_page(kind), [], Image.Image.resize

    def note(self: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        resized.append((self.mode, size))
        return resize(self, size, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", note)
    make_global_views([page], (32, 32), BICUBIC, None, None)
    assert [mode for mode, size in resized if size != (views.SAMPLE, views.SAMPLE)] == bands
