"""How well page vectors and vision tokens find a page again.

Unusual: every query is a page of its own picture: a degraded copy, a scan-like photograph, or the same text in another
font and layout. The pages that are searched are clean, and of texts and fonts that training has not seen.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from deepencoder import DeepEncoder

from .damage import damage_page, photograph_page
from .materials import Materials
from .pages import Page, PageStyle, draw_page

__all__ = ["QUERIES", "Vectors", "late_interaction", "recall", "thumbnail", "vectors_of"]

SIDE = 512
"""Side of the pages in pixels."""
STYLE = PageStyle(SIDE, SIDE, (16, 28), cut=False, varied=True)
FIRST_SEED = 3 * 10**12


def _page(number: int, materials: Materials) -> Page:
    return draw_page(FIRST_SEED + number, materials, STYLE)


def _degraded(number: int, materials: Materials) -> Image.Image:
    return damage_page(_page(number, materials), FIRST_SEED + number, 1.0).image


def _photograph(number: int, materials: Materials) -> Image.Image:
    return photograph_page(_page(number, materials), FIRST_SEED + number).image


def _other_look(number: int, materials: Materials) -> Image.Image:
    seed = FIRST_SEED + number
    return draw_page(seed + 10**9, materials, STYLE, text_seed=seed).image


QUERIES: dict[str, Callable[[int, Materials], Image.Image]] = {
    "page": lambda number, materials: _page(number, materials).image,
    "degraded copy": _degraded,
    "photograph": _photograph,
    "other font and layout": _other_look,
}
"""The pages that are searched, and the queries."""


def thumbnail(image: Image.Image, side: int = 32) -> np.ndarray:
    """Return the grey pixels of a small picture of the page without their mean, `(side * side,)`."""
    pixels = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.float32).ravel()
    return pixels - pixels.mean()


class Vectors(NamedTuple):
    """Vectors of `n` pages.

    Attributes:
        pooled (`(n, d)`): normalised page vectors.
        tokens (`(n, t, p)`): vision tokens without newlines and separator.
        thumbnails (`(n, s)`): normalised thumbnails.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor
    thumbnails: torch.Tensor


@torch.no_grad()
def vectors_of(encoder: DeepEncoder, images: list[Image.Image], batch_size: int = 8) -> Vectors:
    """Encode pages of one size."""
    pooled, tokens = [], []
    for start in range(0, len(images), batch_size):
        pixels = np.stack([np.asarray(image) for image in images[start : start + batch_size]])
        # (batch, height, width, 3) -> (batch, 3, height, width)
        _, parts, output = encoder.encode_view(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
        assert output.pooler_output is not None
        pooled.append(output.pooler_output)
        tokens.append(parts.flatten(1, 2))
    small = torch.from_numpy(np.stack([thumbnail(image) for image in images]))
    return Vectors(normalize(torch.cat(pooled), dim=-1), torch.cat(tokens), normalize(small, dim=-1))


def late_interaction(queries: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """Return for each query and page the mean over the query's tokens of the largest similarity, `(n, m)`.

    Args:
        queries, pages: normalised tokens, `(n, t, d)` and `(m, t, d)`.
    """
    rows = []
    flat = pages.flatten(0, 1).bfloat16()
    for query in queries.bfloat16():
        scores = (query @ flat.T).unflatten(1, pages.shape[:2])  # (t, m, t)
        rows.append(scores.float().amax(-1).mean(0))
    return torch.stack(rows)


def recall(scores: torch.Tensor, counts: tuple[int, ...] = (1, 10)) -> list[float]:
    """Return the share of queries whose own page is among the first `count`; query `i` looks for page `i`."""
    own = scores.diagonal()[:, None]
    ranks = (scores > own).sum(1)
    return [float((ranks < count).float().mean()) for count in counts]
