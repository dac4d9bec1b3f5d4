"""What a token shall say: the characters of its box, by their place in it.

Unusual: a token's box of 64 x 64 pixels is divided into 8 x 8 cells with three slots each. All characters of a line
get the row of cells in which the middle of the line lies within this token, so that the slots in row-major order are
the text in reading order even where the page is skewed.
"""

import numpy as np

from deepencoder.reading.alphabet import EMPTY

from .pages import REGIONS, Page

__all__ = ["CELLS", "SLOTS", "bordering_texts", "character_slots", "region_kinds", "token_texts"]

CELLS = 8
"""Rows, and columns, of cells in a token's box."""
SLOTS = 3
"""Characters that a cell can hold."""


def place_characters(page: Page, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the token of each character, `(n, 2)` rows and columns, and the row and column of its cell."""
    centers = (page.boxes[:, :2] + page.boxes[:, 2:]) / 2
    tokens = (centers[:, ::-1] // side).astype(np.int64)
    columns = ((centers[:, 0] - tokens[:, 1] * side) * CELLS / side).astype(np.int64)
    width = int(tokens[:, 1].max(initial=0)) + 1
    # One number for each pair of a line and a token; the middle of the line's part in the token.
    keys = (page.lines * (int(tokens[:, 0].max(initial=0)) + 1) + tokens[:, 0]) * width + tokens[:, 1]
    _, groups, counts = np.unique(keys, return_inverse=True, return_counts=True)
    middles = np.bincount(groups, weights=centers[:, 1]) / counts if len(keys) else np.zeros(0)
    rows = ((middles[groups] - tokens[:, 0] * side) * CELLS / side).astype(np.int64) if len(keys) else columns
    return tokens, rows.clip(0, CELLS - 1), columns.clip(0, CELLS - 1)


def character_slots(page: Page, side: int = 64) -> np.ndarray:
    """Return the character in each slot of each token.

    Args:
        page: the page; its sides are multiples of `side`.
        side: side of a token's box in pixels.

    Returns:
        `np.ndarray` of shape `(height / side, width / side, CELLS, CELLS, SLOTS)`, int64. Characters beyond a cell's
        slots are left out.
    """
    height, width = page.image.height // side, page.image.width // side
    slots = np.full((height, width, CELLS, CELLS, SLOTS), EMPTY, dtype=np.int64)
    tokens, rows, columns = place_characters(page, side)
    order = np.argsort(page.boxes[:, 0] + page.boxes[:, 2], kind="stable")
    places = np.stack([tokens[:, 0], tokens[:, 1], rows, columns], axis=1)[order]
    if len(places):
        _, groups = np.unique(places, axis=0, return_inverse=True)
        groups = groups.reshape(-1)
        by_group = np.argsort(groups, kind="stable")
        starts = np.flatnonzero(np.diff(groups[by_group], prepend=-1))
        rank = np.empty(len(groups), dtype=np.int64)
        rank[by_group] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
        fits = rank < SLOTS
        slots[tuple(places[fits].T) + (rank[fits],)] = page.characters[order][fits]
    return slots


def token_texts(page: Page, side: int = 64) -> list[list[list[int]]]:
    """Return the characters of each token in reading order: line after line, from left to right."""
    height, width = page.image.height // side, page.image.width // side
    texts: list[list[list[int]]] = [[[] for _ in range(width)] for _ in range(height)]
    tokens, rows, _ = place_characters(page, side)
    order = np.lexsort((page.boxes[:, 0] + page.boxes[:, 2], page.lines, rows))
    for index in order:
        texts[tokens[index, 0]][tokens[index, 1]].append(int(page.characters[index]))
    return texts


def bordering_texts(page: Page, border: float, side: int = 64) -> list[list[tuple[list[int], list[bool]]]]:
    """Return for each token the characters in and around its box in reading order, and which are certainly its own.

    Args:
        page: the page.
        border: a character whose centre is not farther than this from the edge of a box, in pixels, may belong to the
            tokens on both sides of the edge.
        side: side of a token's box in pixels.
    """
    height, width = page.image.height // side, page.image.width // side
    centers = (page.boxes[:, :2] + page.boxes[:, 2:]) / 2
    lines = np.unique(page.lines, return_inverse=True)[1].reshape(-1)
    middles = np.bincount(lines, weights=centers[:, 1]) / np.bincount(lines) if len(lines) else np.zeros(0)
    texts = []
    for top in range(0, height * side, side):
        row = []
        for left in range(0, width * side, side):
            # Distance from the nearest edge, positive inside.
            inside = np.minimum(centers - (left, top), (left + side, top + side) - centers).min(axis=1)
            near = np.flatnonzero(inside >= -border)
            near = near[np.lexsort((centers[near, 0], lines[near], middles[lines[near]]))]
            row.append((page.characters[near].tolist(), (inside[near] > border).tolist()))
        texts.append(row)
    return texts


def region_kinds(page: Page, side: int = 64) -> np.ndarray:
    """Return the kind of region at each token's middle, `(height / side, width / side)` indices of [`REGIONS`]."""
    height, width = page.image.height // side, page.image.width // side
    kinds = np.zeros((height, width), dtype=np.int64)
    xs, ys = (np.arange(width) + 0.5) * side, (np.arange(height) + 0.5) * side
    for kind, (left, top, right, bottom) in page.regions:
        inside = ((ys >= top) & (ys < bottom))[:, None] & ((xs >= left) & (xs < right))[None]
        kinds[inside] = REGIONS.index(kind)
    return kinds
