"""Pages decoded and cut into the views that the model sees, before any of them reaches a device.

Unusual: pixels stay bytes, a quarter of the size of floats, because worker processes send them through a pipe. They
are normalised beside the model, by the same float32 operations as in the image processor.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..processing.tiling import count_image_tokens
from .pages import Page, PageError, load_page

__all__ = ["PageLoader", "PreparedImage", "not_prepared", "prepare_image"]


@dataclass(frozen=True)
class PreparedImage:
    """An image as the views that the model sees.

    Args:
        width, height (`int`): size of the image in pixels.
        sha256 (`str`): hash of the image's RGB bytes, row-major.
        view (`numpy.ndarray` of shape `(3, H, W)`): the global view, in bytes.
        tiles (`numpy.ndarray` of shape `(T, 3, t, t)`, *optional*): the tiles, in bytes.
        grid (`tuple[int, int]`): columns and rows of tiles; `(1, 1)` without tiles.
    """

    width: int
    height: int
    sha256: str
    view: np.ndarray
    tiles: np.ndarray | None
    grid: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Number of pixels of all views, to which the model's work and memory are proportional."""
        tiles = 0 if self.tiles is None else self.tiles.size
        return (self.view.size + tiles) // self.view.shape[0]

    @property
    def num_tiles(self) -> int:
        return 0 if self.tiles is None else len(self.tiles)

    def count_tokens(self, config: Any) -> int:
        """Count the image's vision tokens, newlines and separator included, given the model's configuration."""
        stride = config.sam_config.total_stride
        height, width = self.view.shape[1:]
        tile = 0 if self.tiles is None else -(-self.tiles.shape[-1] // stride)
        view = (-(-width // stride), -(-height // stride))
        return count_image_tokens(view, self.grid, (tile, tile), config.token_scheme)


def prepare_image(image: Image.Image, image_processor: Any, mode: str | None = None) -> PreparedImage:
    """Cut an RGB image into the views that the model sees.

    Raises:
        `PageError`: the image cannot be used.
    """
    fields = {} if mode is None else {"mode": mode}
    try:
        inputs = image_processor(image, do_rescale=False, do_normalize=False, **fields)
    except ValueError as error:
        raise PageError(str(error)) from error
    columns, rows = (int(cells) for cells in inputs["patches_grid"][0])
    tiles = inputs.get("pixel_values_local")
    return PreparedImage(
        image.width,
        image.height,
        hashlib.sha256(image.tobytes()).hexdigest(),
        np.asarray(inputs["pixel_values"][0]),
        None if tiles is None else np.stack(tiles),
        (columns, rows),
    )


class PageLoader:
    """Loads and prepares pages, in worker processes or in this one. A page that fails gives its `PageError`.

    Args:
        image_processor ([`DeepEncoderImageProcessor`]): the model's image processor.
        mode (`str`, *optional*): a mode that overrides the processor's own fields.
    """

    def __init__(self, image_processor: Any, mode: str | None = None) -> None:
        self.image_processor, self.mode = image_processor, mode

    def __call__(self, page: Page) -> tuple[Page, PreparedImage | PageError]:
        prepared: PreparedImage | PageError
        try:
            prepared = prepare_image(load_page(page), self.image_processor, self.mode)
        except PageError as error:
            # A new error, since the traceback of this one would keep the page's pixels in memory.
            prepared = PageError(str(error) or "it cannot be used")
        except MemoryError:
            prepared = PageError("not enough memory to prepare it")
        return page.without_data(), prepared  # The bytes that were decoded need not travel back.


def not_prepared(page: Page, reason: str) -> tuple[Page, PreparedImage | PageError]:
    """Give the result of [`PageLoader`] for a page whose process died or was killed."""
    return page.without_data(), PageError(f"decoding it failed: {reason}")
