"""Pictures of what the encoder sees: the views with their token grids, features as colours, and similar tokens.

Unusual: the global view and the tiles share one colour scale, so the same colour means the same feature in both.
Tokens of padding have no part in any scale, since they all look alike and differ from everything else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from .placement import PageGeometry, Placement
from .token_layout import TokenLayout, lay_out_tokens, to_grid

__all__ = [
    "draw_encoding",
    "draw_heat_map",
    "draw_similarity",
    "features_to_colors",
    "find_salient_token",
    "join_panels",
    "stitch_tiles",
]

TOKEN_LINE = (60, 110, 220, 70)  # Translucent, so that the print below stays legible.
TILE_LINE = (214, 39, 40)
PADDING = (127, 127, 127)
GAP = 16  # Pixels between panels.
HEAT = np.array([(24, 28, 84), (84, 44, 140), (168, 52, 128), (232, 92, 84), (250, 168, 56), (255, 244, 150)])
"""Colours of a heat map, from the lowest value to the highest; each is lighter than the one before."""
HEAT_OPACITY = 0.6


def stitch_tiles(tiles: torch.Tensor, tile_grid: tuple[int, int]) -> torch.Tensor:
    """Join row-major tiles `(rows * columns, h, w, dim)` to a mosaic `(rows * h, columns * w, dim)`."""
    columns, rows = tile_grid
    _, height, width, dim = tiles.shape
    # (rows * columns, h, w, dim) -> (rows, h, columns, w, dim) -> (rows * h, columns * w, dim)
    split = tiles.reshape(rows, columns, height, width, dim).transpose(1, 2)
    return split.reshape(rows * height, columns * width, dim)


def features_to_colors(
    grids: Sequence[torch.Tensor], padding: Sequence[np.ndarray | None] | None = None
) -> list[np.ndarray]:
    """Map features to colours by their first three principal components, with one colour scale for all grids.

    Args:
        grids (sequence of `torch.Tensor` of shape `(h, w, dim)`): features of one or more views.
        padding (sequence of bool arrays of shape `(h, w)`, *optional*): for each grid the tokens that are left out and
            come out grey, or None.

    Returns:
        for each grid a uint8 `numpy.ndarray` of shape `(h, w, 3)`. Components without variance come out grey.

    Raises:
        `ValueError`: an array of `padding` has another shape than its grid.
    """
    shown = []
    for grid, mask in zip(grids, padding or [None] * len(grids), strict=True):
        kept = np.ones(grid.shape[:2], bool) if mask is None else ~np.asarray(mask, bool)
        if kept.shape != tuple(grid.shape[:2]):
            raise ValueError(f"padding must have the shape {tuple(grid.shape[:2])} of its grid, got {kept.shape}.")
        shown.append(kept)
    tokens = torch.cat([grid[torch.from_numpy(kept)] for grid, kept in zip(grids, shown, strict=True)])
    parts = np.split(_to_colors(tokens.float().cpu()), np.cumsum([kept.sum() for kept in shown])[:-1])
    colors = [np.full((*kept.shape, 3), PADDING, np.uint8) for kept in shown]
    for color, kept, part in zip(colors, shown, parts, strict=True):
        color[kept] = part
    return colors


def _to_colors(tokens: torch.Tensor) -> np.ndarray:
    """Map features `(n, dim)` to colours `(n, 3)` by their first three principal components."""
    if not len(tokens):
        return np.zeros((0, 3), np.uint8)
    centered = tokens - tokens.mean(dim=0)
    _, singular, directions = torch.linalg.svd(centered, full_matrices=False)
    components = torch.zeros(len(tokens), 3)
    count = min(3, len(singular))
    # The sign of a direction is arbitrary. Its largest entry is made positive, so that one input gives one picture.
    directions = directions[:count]
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    components[:, :count] = centered @ (directions * signs).T
    spread = components.abs().quantile(0.98, dim=0).clamp_min(1e-12)
    return ((components / spread).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).numpy()


def _draw_lines(image: Image.Image, columns: int, rows: int, color: tuple[int, ...], width: int = 1) -> None:
    """Draw a grid of lines in an RGB or RGBA colour onto an RGB image."""
    draw = ImageDraw.Draw(image, "RGBA")
    for column in range(columns + 1):
        x = min(round(column * image.width / columns), image.width - 1)
        draw.line([(x, 0), (x, image.height)], fill=color, width=width)
    for row in range(rows + 1):
        y = min(round(row * image.height / rows), image.height - 1)
        draw.line([(0, y), (image.width, y)], fill=color, width=width)


def join_panels(panels: Sequence[Image.Image]) -> Image.Image:
    """Put pictures side by side on white."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    picture = Image.new("RGB", (width, max(panel.height for panel in panels)), (255, 255, 255))
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + GAP
    return picture


def draw_encoding(
    view: Image.Image,
    view_features: torch.Tensor,
    mosaic: Image.Image | None = None,
    mosaic_features: torch.Tensor | None = None,
    tile_grid: tuple[int, int] = (1, 1),
    height: int = 768,
    view_padding: np.ndarray | None = None,
) -> Image.Image:
    """Draw the views of one image and their features side by side.

    Args:
        view (`PIL.Image`): the global view, padding included; drawn with its token grid.
        view_features (`torch.Tensor` of shape `(h, w, dim)`): features of the global view, drawn as colours.
        mosaic (`PIL.Image`, *optional*): the stitched tiles, drawn with their token grid and tile borders.
        mosaic_features (`torch.Tensor` of shape `(h, w, dim)`, *optional*): features of the mosaic, drawn as colours.
        tile_grid (`tuple[int, int]`, defaults to `(1, 1)`): columns and rows of tiles in the mosaic.
        height (`int`, defaults to 768): height of the picture in pixels.
        view_padding (bool array of shape `(h, w)`, *optional*): tokens of the global view that are drawn grey, and
            have no part in the colours.

    Returns:
        `PIL.Image`: the views and their features in a row.
    """
    sources = [(view, view_features, (1, 1))]
    if mosaic is not None and mosaic_features is not None:
        sources.append((mosaic, mosaic_features, tile_grid))
    paddings = [view_padding, None][: len(sources)]
    colors = features_to_colors([features for _, features, _ in sources], paddings)
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
    return join_panels(panels)


def _lay_out_grid(page: Image.Image, tokens: torch.Tensor) -> tuple[torch.Tensor, TokenLayout]:
    """Return tokens `(h, w, dim)` that cover the whole page as a sequence `(L, dim)`, and its layout."""
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have the shape (h, w, dim) without a layout, got {tuple(tokens.shape)}.")
    height, width, dim = tokens.shape
    place = Placement(0, 0, width, height)
    layout = lay_out_tokens(
        PageGeometry((page.height, page.width), (height, width), place, (1, 1), 1, stride=1, token_scheme="cells")
    )
    sequence = tokens.new_zeros(len(layout), dim)
    sequence[torch.from_numpy(layout.view_index)] = tokens
    return sequence, layout


def _check_sequence(tokens: torch.Tensor, layout: TokenLayout) -> None:
    if tokens.ndim != 2 or len(tokens) != len(layout):
        raise ValueError(f"tokens must have the shape ({len(layout)}, dim) of the layout, got {tuple(tokens.shape)}.")


def find_salient_token(tokens: torch.Tensor, layout: TokenLayout) -> int | None:
    """Return the token that is least similar to the mean of its page, to have one to begin with.

    Args:
        tokens (`torch.Tensor` of shape `(L, dim)`): the `vision_tokens` of a page.
        layout ([`TokenLayout`]): their layout. Tokens of tiles are preferred, where there are any, since they are
            smaller.

    Returns:
        `int`: its position in the sequence; None if no token shows the page.
    """
    _check_sequence(tokens, layout)
    shown = np.flatnonzero((layout.kind == ("tile" if layout.tile_index.size else "view")) & ~layout.is_padding)
    if not len(shown):
        return None
    features = torch.nn.functional.normalize(tokens.detach().float().cpu()[torch.from_numpy(shown)], dim=-1)
    return int(shown[int((features @ features.mean(dim=0)).argmin())])


def _similarities(tokens: torch.Tensor, index: int, positions: np.ndarray) -> np.ndarray:
    """Return the cosine similarities of token `index` of `(L, dim)` with those at `positions` `(h, w)`."""
    features = torch.nn.functional.normalize(tokens.detach().float().cpu(), dim=-1)
    return (features[torch.from_numpy(positions)] @ features[index]).numpy()


def _fit_layout(page: Image.Image, layout: TokenLayout) -> TokenLayout:
    """Return a layout for the size of `page`, which must have the proportions of the layout's page."""
    height, width = layout.page_size
    # Either side may have been rounded to whole pixels when the page was made smaller.
    if abs(page.width * height - page.height * width) > max(height, width):
        raise ValueError(
            f"layout: it is of a page of {width} x {height} pixels, which has other proportions than one of "
            f"{page.width} x {page.height}."
        )
    return layout.rescale(page.height, page.width)


def _draw_values(
    page: Image.Image, values: np.ndarray, layout: TokenLayout, kind: str, in_scale: np.ndarray
) -> Image.Image:
    """Draw values `(h, w)` on a page of the layout's size; the colours span those that `in_scale` chooses."""
    scale = values[in_scale]
    low, high = (scale.min(), scale.max()) if scale.size else (0.0, 1.0)
    heat = layout.map_to_page((values - low) / max(high - low, 1e-12), kind, smooth=True)
    return _blend_heat(page.convert("RGB"), heat)


def draw_heat_map(page: Image.Image, values: Any, layout: TokenLayout, kind: str = "view") -> Image.Image:
    """Draw one value for each token as a translucent heat map on the page.

    The colours span the values of the tokens that show the page, from the lowest (dark blue) to the highest (yellow).

    Args:
        page (`PIL.Image`): the page; it may be a smaller copy.
        values (array or tensor of shape `(h, w)`): a value for each token of the global view, or of the tiles' mosaic.
        layout ([`TokenLayout`]): from `processor.get_token_layout`, for the size of the original page.
        kind (`str`, defaults to `"view"`): which tokens the values are of, `"view"` or `"tile"`.

    Returns:
        `PIL.Image`: a picture of the size of `page`.

    Raises:
        `ValueError`: `values` has another shape, the page has no tiles, or `layout` is of a page of other proportions.
    """
    layout = _fit_layout(page, layout)
    grid = layout.grid_index(kind)
    numbers = to_grid(values, grid.shape)
    return _draw_values(page, numbers, layout, kind, in_scale=~layout.is_padding[grid])


def draw_similarity(
    page: Image.Image, tokens: torch.Tensor, index: int, layout: TokenLayout | None = None
) -> Image.Image:
    """Draw how similar one token is to all others, as a translucent heat map on the page.

    The colours span the cosine similarities of the other tokens, from the lowest (dark blue) to the highest (yellow);
    tokens of padding are left out. The chosen token is outlined. For a token of a tile, the heat map shows the tokens
    of all tiles, and for one of the global view those of the view.

    Args:
        page (`PIL.Image`): the page; it may be a smaller copy.
        tokens (`torch.Tensor`): with a layout, the page's `vision_tokens` `(L, dim)`; without, features `(h, w, dim)`
            of a grid that covers the whole page.
        index (`int`): position of the chosen token: in the sequence; without a layout in the grid, row by row.
        layout ([`TokenLayout`], *optional*): from `processor.get_token_layout`, for the size of the original page.

    Returns:
        `PIL.Image`: a picture of the size of `page`.

    Raises:
        `ValueError`: `tokens` has another shape; `index` is out of range, a newline, the separator or padding; or
            `layout` is of a page of other proportions.
    """
    positions: np.ndarray
    if layout is None:
        tokens, layout = _lay_out_grid(page, tokens)
        positions = layout.view_index.ravel()
    else:
        _check_sequence(tokens, layout)
        positions = np.arange(len(layout))
    if not 0 <= index < len(positions):
        raise ValueError(f"index must be at least 0 and less than {len(positions)}, got {index}.")
    chosen = int(positions[index])
    kind = str(layout.kind[chosen])
    if kind not in ("view", "tile") or layout.is_padding[chosen]:
        shown = "padding" if layout.is_padding[chosen] else f"a {kind}"
        raise ValueError(f"index: token {index} is {shown}, which shows no part of the page.")
    layout = _fit_layout(page, layout)
    grid = layout.grid_index(kind)
    values = _similarities(tokens, chosen, grid)
    picture = _draw_values(page, values, layout, kind, in_scale=(grid != chosen) & ~layout.is_padding[grid])
    left, top, right, bottom = layout.boxes[chosen].round().astype(int).tolist()
    line = max(2, min(page.size) // 250)
    ImageDraw.Draw(picture).rectangle(
        (left, top, max(left, right - 1), max(top, bottom - 1)), outline=TILE_LINE, width=line
    )
    return picture


def _blend_heat(page: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay the colours of a map `(height, width)` over an RGB page; its values are clipped to [0, 1]."""
    levels = Image.fromarray((heat.clip(0, 1) * 255).round().astype(np.uint8))
    steps = np.linspace(0, 1, len(HEAT))
    # (256, 3): the colour of each level.
    palette = np.stack([np.interp(np.linspace(0, 1, 256), steps, channel) for channel in HEAT.T], axis=1)
    levels.putpalette(palette.round().astype(np.uint8).tobytes())
    return Image.blend(page, levels.convert("RGB"), HEAT_OPACITY)
