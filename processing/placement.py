"""Where a page lies on its views, and how many tokens these have: arithmetic on sizes, without pixels.

Unusual: the views are made by this arithmetic, and tokens are counted and located by it, so that they cannot disagree.
Sizes are `(height, width)` here, while grids of tiles and of tokens are `(columns, rows)`, as in `patches_grid`.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tiling import choose_tile_grid, count_image_tokens

__all__ = ["MAX_SIDE", "PageGeometry", "Placement", "cell_fields", "check_page_size", "contain_page"]

MAX_SIDE = 2**31 - 1
"""Largest height or width of a page in pixels; no image library has larger ones."""


@dataclass(frozen=True)
class Placement:
    """The rectangle of a view that the page fills, in pixels of the view; the rest is padding.

    Args:
        left, top: offset of the page.
        width, height: size to which the page is resized. One of them is 0 if the page is so long and thin that
            nothing of it is left.
    """

    left: int
    top: int
    width: int
    height: int


def contain_page(page_size: tuple[int, int], view_size: tuple[int, int]) -> Placement:
    """Fit a page into a view and centre it, with the roundings of Pillow's `ImageOps.pad`.

    Args:
        page_size, view_size (`tuple[int, int]`): height and width in pixels.
    """
    page_height, page_width = page_size
    height, width = view_size
    # Python's `round` rounds half to even. Another order of the operations would round some sizes differently.
    if page_width / page_height > width / height:
        height = round(page_height / page_width * width)
    else:
        width = round(page_width / page_height * height)
    return Placement(round((view_size[1] - width) / 2), round((view_size[0] - height) / 2), width, height)


def check_page_size(height: Any, width: Any) -> tuple[int, int]:
    """Return the size of a page as integers; a `ValueError` names the arguments `height` and `width`."""
    try:
        size = operator.index(height), operator.index(width)
    except TypeError:
        size = 0, 0
    if not all(1 <= side <= MAX_SIDE for side in size):
        given = " and ".join(repr(side)[:40] for side in (height, width))
        raise ValueError(f"height and width must be positive integers of at most {MAX_SIDE}, got {given}.")
    return size


def cell_fields(config: Any) -> dict[str, Any]:
    """Return the fields of an image processor that count and locate the tokens of a model with this configuration."""
    sam = config.sam_config
    return {
        "patch_size": sam.patch_size,
        "downsample_ratio": sam.total_stride // sam.patch_size,
        "token_scheme": config.token_scheme,
    }


@dataclass(frozen=True)
class PageGeometry:
    """A page's views in pixels and in tokens.

    Args:
        page_size: height and width of the page in pixels.
        view_size: height and width of the global view in pixels.
        placement: where the page lies on the global view. On the tiles it always fills all of the mosaic.
        tile_grid: columns and rows of tiles; `(1, 1)` for a page without tiles.
        tile_size: side of a tile in pixels.
        stride: side of a token's cell in pixels of a view.
        token_scheme: one of [`TOKEN_SCHEMES`].
    """

    page_size: tuple[int, int]
    view_size: tuple[int, int]
    placement: Placement
    tile_grid: tuple[int, int]
    tile_size: int
    stride: int
    token_scheme: str

    @classmethod
    def from_fields(cls, height: int, width: int, fields: Mapping[str, Any]) -> "PageGeometry":
        """Work out the views of a page from its size and the checked fields of an image processor.

        Raises:
            `ValueError`: `height` or `width` is no positive integer, or too large.
        """
        page_size = check_page_size(height, width)
        view_size = (int(fields["size"]["height"]), int(fields["size"]["width"])) if fields["do_resize"] else page_size
        placement = Placement(0, 0, view_size[1], view_size[0])
        if fields["do_resize"] and fields["do_pad"]:
            placement = contain_page(page_size, view_size)
        side, tile_grid = fields["tile_size"], (1, 1)
        if fields["crop_to_patches"]:
            tile_grid = choose_tile_grid(*page_size, fields["min_patches"], fields["max_patches"], side)
        stride = fields["patch_size"] * fields["downsample_ratio"]
        return cls(page_size, view_size, placement, tile_grid, side, stride, fields["token_scheme"])

    @property
    def num_tiles(self) -> int:
        """Number of tiles: 0 for the grid `(1, 1)`, which stands for a page without tiles."""
        columns, rows = self.tile_grid
        return columns * rows if columns * rows > 1 else 0

    @property
    def view_tokens(self) -> tuple[int, int]:
        """Columns and rows of tokens of the global view; the last of them may cover less than a whole cell."""
        height, width = self.view_size
        return -(-width // self.stride), -(-height // self.stride)

    @property
    def tile_tokens(self) -> int:
        """Columns, or rows, of tokens of a tile."""
        return -(-self.tile_size // self.stride)

    @property
    def num_tokens(self) -> int:
        """Number of vision tokens, newlines and separator included."""
        return count_image_tokens(
            self.view_tokens, self.tile_grid, (self.tile_tokens, self.tile_tokens), self.token_scheme
        )
