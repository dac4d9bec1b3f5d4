"""Tile grids against an independent version of DeepSeek-OCR's rule, and token counts against known numbers."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepencoder.processing.tiling import MAX_PATCHES, choose_tile_grid, count_image_tokens, tile_grid_candidates

SIDES = st.integers(1, 6000)


def reference_grid(width: int, height: int, fewest: int, most: int, tile: int) -> tuple[int, int]:
    """The rule of DeepSeek-OCR's `find_closest_aspect_ratio`, for the candidates of its `dynamic_preprocess`."""
    if width <= tile and height <= tile:
        return (1, 1)
    pairs = {(i, j) for n in range(fewest, most + 1) for i in range(1, n + 1) for j in range(1, n + 1)}
    targets = sorted(
        (pair for pair in pairs if fewest <= pair[0] * pair[1] <= most), key=lambda pair: pair[0] * pair[1]
    )
    best_difference, best = float("inf"), (1, 1)
    for target in targets:
        difference = abs(width / height - target[0] / target[1])
        if difference < best_difference:
            best_difference, best = difference, target
        elif difference == best_difference and width * height > 0.5 * tile * tile * target[0] * target[1]:
            best = target
    return best


@given(SIDES, SIDES, st.sampled_from([(2, 9), (2, 6), (2, 32), (1, 9), (1, 12), (3, 3)]), st.sampled_from([640, 768]))
def test_grid_equals_the_reference(width: int, height: int, bounds: tuple[int, int], tile: int) -> None:
    assert choose_tile_grid(height, width, *bounds, tile) == reference_grid(width, height, *bounds, tile)


@pytest.mark.parametrize(("fewest", "most"), [(2, 9), (1, 6)])
def test_grid_equals_the_reference_where_two_candidates_tie(fewest: int, most: int) -> None:
    candidates = tile_grid_candidates(fewest, most)
    for first in candidates:
        for second in candidates:
            middle = (Fraction(*first) + Fraction(*second)) / 2
            for scale in (1, 30, 200, 700):
                width, height = middle.numerator * scale, middle.denominator * scale
                ours = choose_tile_grid(height, width, fewest, most, 640)
                assert ours == reference_grid(width, height, fewest, most, 640)


def test_the_largest_number_of_tiles_has_few_candidates() -> None:
    """As many as there are divisors of the numbers up to the bound, and no other pair of sides is looked at."""
    candidates = tile_grid_candidates(1, MAX_PATCHES)
    assert len(candidates) == sum(MAX_PATCHES // columns for columns in range(1, MAX_PATCHES + 1)) < 10_000
    started = time.perf_counter()
    tile_grid_candidates(1, 30_000)  # Every pair of sides would take a minute.
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (640, 640, (1, 1)),
        (641, 640, (2, 2)),
        (1240, 1754, (2, 3)),
        (1754, 1240, (3, 2)),
        (5000, 1000, (5, 1)),
        (300, 6000, (1, 9)),
        (700, 700, (2, 2)),
        (3000, 3000, (3, 3)),
    ],
)
def test_known_grids(width: int, height: int, grid: tuple[int, int]) -> None:
    assert choose_tile_grid(height, width, 2, 9, 640) == grid


@pytest.mark.parametrize(("tokens", "expected"), [(8, 73), (10, 111), (16, 273), (20, 421)])
def test_token_counts_of_the_modes(tokens: int, expected: int) -> None:
    assert count_image_tokens((tokens, tokens), (1, 1), (10, 10)) == expected


def test_token_count_with_tiles() -> None:
    columns, rows = 3, 2
    assert count_image_tokens((16, 16), (columns, rows), (10, 10)) == 273 + (10 * columns + 1) * 10 * rows
