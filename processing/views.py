"""The views of a page: the global view and the tiles.

Unusual: copies of tens of megabytes take most of the time here, so each pixel is written once, straight to its place
in the batch, and is normalised on the way. Pages are mostly grey, and then one channel is resized instead of three.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from transformers.image_utils import PILImageResampling

from .normalization import Normalization
from .placement import Placement, contain_page

__all__ = ["make_global_views", "make_tiles"]

SAMPLE = 64
"""Pixels on each side of the sample that tells most images in colour from grey ones."""


def split_planes(image: Image.Image) -> list[np.ndarray]:
    """Return the channels of an RGB image, `(height, width)` each: Pillow separates them faster than numpy does."""
    return [np.asarray(band) for band in image.split()]


def is_grey(bands: Sequence[Image.Image], image: Image.Image) -> bool:
    """Return whether the channels of an RGB image are equal."""
    # A few pixels tell for most images in colour, at no cost.
    sample = np.asarray(image.resize((SAMPLE, SAMPLE), Image.Resampling.NEAREST))
    if (sample != sample[..., :1]).any():
        return False
    first = bands[0].tobytes()
    return all(band.tobytes() == first for band in bands[1:])


def resize_planes(image: Image.Image, size: tuple[int, int], resample: PILImageResampling) -> list[np.ndarray]:
    """Resize an RGB image to `size` (width, height), and return its channels, `(height, width)` each.

    Pillow resizes every channel by itself, so a grey page needs a third of the work.
    """
    bands = image.split()
    if not is_grey(bands, image):
        return split_planes(image.resize(size, resample=resample))
    return [np.asarray(bands[0].resize(size, resample=resample))] * 3


def pad_planes(
    image: Image.Image, place: Placement, size: tuple[int, int], color: tuple[int, ...], resample: PILImageResampling
) -> list[np.ndarray]:
    """Resize an RGB image to its place in a view of `size` (width, height), and fill the rest with `color`."""
    padded = [np.full((size[1], size[0]), value, np.uint8) for value in color]
    if place.width and place.height:
        inner = resize_planes(image, (place.width, place.height), resample)
        for outer, plane in zip(padded, inner, strict=True):
            outer[place.top : place.top + place.height, place.left : place.left + place.width] = plane
    return padded


def write_planes(planes: list[np.ndarray], out: np.ndarray, normalization: Normalization | None) -> None:
    """Write three channels `(height, width)` into `out`, normalised, or as bytes without a normalisation.

    `out` is `(3, height, width)`, or a numpy view that splits height and width further.
    """
    for channel, (pixels, plane) in enumerate(zip(planes, out, strict=True)):
        pixels = pixels.reshape(plane.shape)  # For tiles: (height, width) -> (rows, tile_size, columns, tile_size).
        if normalization is None:
            plane[...] = pixels
        else:
            normalization.write(pixels, channel, plane)


def empty_pixels(shape: tuple[int, ...], normalization: Normalization | None) -> np.ndarray:
    """Return uninitialised memory for normalised values, or for bytes without a normalisation."""
    return np.empty(shape, np.uint8 if normalization is None else np.float32)


def make_global_views(
    images: Sequence[Image.Image],
    size: tuple[int, int] | None,
    resample: PILImageResampling,
    color: tuple[int, ...] | None,
    normalization: Normalization | None,
) -> np.ndarray | list[np.ndarray]:
    """Make the global view of each image.

    Args:
        images: RGB images.
        size: width and height of the views in pixels; None keeps the size of each image.
        resample: Pillow's filter.
        color: colour of the padding of resized images; None squashes them instead.
        normalization: applied to the pixels; None keeps bytes.

    Returns:
        views `(images, 3, height, width)`; with `size=None` a list of `(3, height, width)`.
    """
    if size is None:
        own = [empty_pixels((3, image.height, image.width), normalization) for image in images]
        for image, view in zip(images, own, strict=True):
            write_planes(split_planes(image), view, normalization)
        return own
    width, height = size
    views = empty_pixels((len(images), 3, height, width), normalization)
    for image, view in zip(images, views, strict=True):
        if color is None:
            planes = resize_planes(image, size, resample)
        else:
            place = contain_page((image.height, image.width), (height, width))
            planes = pad_planes(image, place, size, color, resample)
        write_planes(planes, view, normalization)
    return views


def make_tiles(
    images: Sequence[Image.Image],
    grids: Sequence[tuple[int, int]],
    tile_size: int,
    resample: PILImageResampling,
    normalization: Normalization | None,
) -> np.ndarray:
    """Squash each image onto its grid and cut it into tiles.

    Args:
        images: RGB images.
        grids: columns and rows of each image's tiles; `(1, 1)` for an image without tiles.
        tile_size: side of a tile in pixels.
        resample: Pillow's filter.
        normalization: applied to the pixels; None keeps bytes.

    Returns:
        tiles `(tiles, 3, tile_size, tile_size)`: image by image, row by row.
    """
    tiled = [(image, grid) for image, grid in zip(images, grids, strict=True) if grid != (1, 1)]
    total = sum(columns * rows for _, (columns, rows) in tiled)
    tiles = empty_pixels((total, 3, tile_size, tile_size), normalization)
    first = 0
    for image, (columns, rows) in tiled:
        planes = resize_planes(image, (columns * tile_size, rows * tile_size), resample)
        own = tiles[first : first + columns * rows]
        # (rows * columns, 3, tile_size, tile_size) -> (3, rows, tile_size, columns, tile_size)
        mosaic = own.reshape(rows, columns, 3, tile_size, tile_size).transpose(2, 0, 3, 1, 4)
        write_planes(planes, mosaic, normalization)
        first += columns * rows
    return tiles
