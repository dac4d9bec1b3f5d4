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

__all__ = [
    "PAGES",
    "QUERIES",
    "Vectors",
    "compare",
    "late_interaction",
    "recall",
    "thumbnail",
    "vectors_in_batches",
    "vectors_of",
    "vectors_of_thumbnails",
]

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


PAGES = "page"
QUERIES: dict[str, Callable[[int, Materials], Image.Image]] = {
    PAGES: lambda number, materials: _page(number, materials).image,
    "degraded copy": _degraded,
    "photograph": _photograph,
    "other font and layout": _other_look,
}
"""The pages that are searched, and the queries."""


class Vectors(NamedTuple):
    """Vectors of `n` pages.

    Attributes:
        pooled (`(n, d)`): one vector for each page.
        tokens (`(n, t, p)`, *optional*): vectors of its parts.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor | None = None


def vectors_in_batches(
    encode: Callable[[list[Image.Image]], tuple[torch.Tensor, torch.Tensor]],
    images: list[Image.Image],
    batch_size: int = 8,
) -> Vectors:
    """Encode pages, a few at a time, with a function that returns pooled vectors and tokens."""
    parts = [encode(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    pooled, tokens = zip(*parts, strict=True)
    return Vectors(torch.cat(pooled), torch.cat(tokens))


@torch.no_grad()
def vectors_of(encoder: DeepEncoder, images: list[Image.Image], batch_size: int = 8) -> Vectors:
    """Encode pages of one size; tokens are vision tokens without newlines and separator."""

    def encode(some: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = np.stack([np.asarray(image) for image in some])
        # (batch, height, width, 3) -> (batch, 3, height, width)
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        _, parts, output = encoder.encode_view(values.to(encoder.dtype))
        assert output.pooler_output is not None
        return output.pooler_output.float(), parts.flatten(1, 2).float()

    return vectors_in_batches(encode, images, batch_size)


def thumbnail(image: Image.Image, side: int = 32) -> np.ndarray:
    """Return the grey pixels of a small picture of the page without their mean, `(side * side,)`."""
    pixels = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.float32).ravel()
    return pixels - pixels.mean()


def vectors_of_thumbnails(images: list[Image.Image]) -> Vectors:
    """Return thumbnails as pooled vectors."""
    return Vectors(torch.from_numpy(np.stack([thumbnail(image) for image in images])))


def compare(queries: Vectors, pages: Vectors) -> dict[str, torch.Tensor]:
    """Return the scores `(n, m)` of queries and pages by each kind of vector."""
    scores = {"pooled vector": _cosines(queries.pooled, pages.pooled)}
    if queries.tokens is not None and pages.tokens is not None:
        mean = pages.tokens.mean((0, 1))  # Tokens share a large mean, which would hide their differences.
        ours, theirs = queries.tokens - mean, pages.tokens - mean
        scores["mean of the tokens"] = _cosines(ours.mean(1), theirs.mean(1))
        scores["late interaction"] = late_interaction(normalize(ours, dim=-1), normalize(theirs, dim=-1))
    return scores


def _cosines(queries: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    return normalize(queries, dim=-1) @ normalize(pages, dim=-1).T


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
