"""Windows: every position is a query of one window, and comes back to its place."""

import pytest
import torch

from deepencoder.modeling.windows import WindowCache, cut_windows, group_windows, window_positions

GRIDS = [(6, 9), (7, 5), (3, 3), (1, 10)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_windows_come_back(grid: tuple[int, int]) -> None:
    features = torch.randn(2, grid[0] * grid[1], 4)
    padding = torch.arange(4.0).expand(2, 1, 4)
    windows = cut_windows(grid, 3)
    (group,) = windows.groups
    down, across = -(-grid[0] // 3), -(-grid[1] // 3)
    cut = torch.cat([features, padding], dim=1)[:, group.keys]
    assert torch.equal(group.queries, group.keys) and (group.rows, group.columns) == (3, 3)
    assert cut.shape == (2, down * across * 9, 4)
    assert torch.equal(cut[:, windows.places], features)
    if grid[1] > 3:  # The second window of the first row begins at column 3.
        assert torch.equal(cut[:, 9], features[:, 3])
    num_padded = int((cut == padding).all(-1).sum())
    assert num_padded == 2 * (down * across * 9 - grid[0] * grid[1])
    assert windows.has_padding is (num_padded > 0)


@pytest.mark.parametrize(
    "grid, sizes",
    [
        ((6, 9), [(3, 3)]),
        ((7, 5), [(3, 3), (3, 2), (1, 3), (1, 2)]),
        ((6, 4), [(3, 3), (3, 1)]),
        ((2, 6), [(2, 3)]),
        ((1, 2), [(1, 2)]),
    ],
    ids=str,
)
def test_groups_of_windows(grid: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    groups, places, has_padding = group_windows(grid, 3)
    assert [(group.rows, group.columns) for group in groups] == sizes
    queries = torch.cat([group.queries for group in groups])
    positions = torch.arange(grid[0] * grid[1])
    assert torch.equal(queries.sort().values, positions) and torch.equal(queries[places], positions)
    keys = torch.cat([group.keys.view(-1, 9) for group in groups])
    whole = cut_windows(grid, 3)
    assert sorted(keys.tolist()) == sorted(whole.groups[0].keys.view(-1, 9).tolist())
    assert has_padding is whole.has_padding
    for group in groups:
        # The queries are the first rows and columns of their windows, row by row.
        first = group.keys.view(-1, 3, 3)[:, : group.rows, : group.columns].flatten()
        assert torch.equal(group.queries, first) and int(first.max()) < grid[0] * grid[1]


def test_a_cache_cuts_each_grid_once() -> None:
    cache, cpu = WindowCache(3), torch.device("cpu")
    assert cache.get((7, 5), cpu) is cache.get((7, 5), cpu)
    assert cache.get((7, 5), cpu, grouped=True) is cache.get((7, 5), cpu, grouped=True)
    assert len(cache.get((7, 5), cpu).groups) == 1 and len(cache.get((7, 5), cpu, grouped=True).groups) == 4
    assert len(cache.get((5, 7), cpu).places) == 35
    assert cache.get((7, 5), torch.device("meta")).places.is_meta


def test_positions_of_windows() -> None:
    # Rows 0 to 3 and columns 0 to 4 in windows of 3: two windows down, two across.
    expected = [
        [0, 1, 2, 5, 6, 7, 10, 11, 12],
        [3, 4, -1, 8, 9, -1, 13, 14, -1],
        [15, 16, 17, -1, -1, -1, -1, -1, -1],
        [18, 19, -1, -1, -1, -1, -1, -1, -1],
    ]
    assert window_positions((4, 5), 3).tolist() == expected
    assert window_positions((1, 1), 2).tolist() == [[0, -1, -1, -1]]
    assert window_positions((64, 64), 14).shape == (25, 196)


@pytest.mark.parametrize(("grid", "size"), [((4, 5), 0), ((0, 5), 3), ((4, -1), 3)])
def test_sizes_that_are_not_positive(grid: tuple[int, int], size: int) -> None:
    with pytest.raises(ValueError, match="grid and window_size must be positive"):
        window_positions(grid, size)
