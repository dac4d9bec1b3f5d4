"""Position tables: resizing, lookup and the cache."""

import copy
import gc
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from deepencoder.modeling.positions import (
    PositionTableCache,
    relative_positions,
    resize_position_grid,
    resize_relative_positions,
)


def test_relative_positions_look_up_the_distance() -> None:
    table = torch.arange(7.0)[:, None]  # The distances -3 to 3 between four positions.
    positions = relative_positions(table, 4)[..., 0]
    for query in range(4):
        for key in range(4):
            assert positions[query, key] == query - key + 3


def test_relative_positions_are_resized_with_half_pixel_centres() -> None:
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    resized = resize_relative_positions(table, 2)
    torch.testing.assert_close(resized, torch.tensor([[0.5], [2.5]]))
    assert resize_relative_positions(table, 4) is table


def test_grids_are_resized_antialiased_in_float32() -> None:
    table = torch.randn(1, 8, 8, 3, dtype=torch.bfloat16)
    resized = resize_position_grid(table, (5, 11))
    assert resized.shape == (1, 5, 11, 3) and resized.dtype == torch.bfloat16
    image = table.float().permute(0, 3, 1, 2)
    options = {"size": (5, 11), "mode": "bicubic", "align_corners": False}
    expected = nn.functional.interpolate(image, antialias=True, **options).permute(0, 2, 3, 1)
    plain = nn.functional.interpolate(image, antialias=False, **options).permute(0, 2, 3, 1)
    assert torch.equal(resized, expected.bfloat16())
    assert not torch.equal(resized, plain.bfloat16())
    assert resize_position_grid(table, (8, 8)) is table


class Counter:
    """Doubles a table and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return table * 2


def test_a_table_is_built_once_for_each_size() -> None:
    cache, parameter, build = PositionTableCache(), nn.Parameter(torch.randn(4, 4)), Counter()
    with torch.no_grad():
        first = cache.get(parameter, 1, build)
        assert cache.get(parameter, 1, build) is first and build.calls == 1
        cache.get(parameter, 2, build)
        assert build.calls == 2 and len(cache) == 2


def test_gradients_reach_the_parameter() -> None:
    cache, parameter, build = PositionTableCache(), nn.Parameter(torch.randn(4, 4)), Counter()
    with torch.no_grad():
        cache.get(parameter, 1, build)
    cache.get(parameter, 1, build).sum().backward()
    assert parameter.grad is not None and (parameter.grad == 2).all()


@pytest.mark.parametrize("how", ["add_", "data", "copy_ through data", "another parameter", "load_state_dict"])
def test_a_changed_parameter_is_noticed(how: str) -> None:
    module = nn.Linear(3, 3)
    cache, build = PositionTableCache(), Counter()
    with torch.no_grad():
        cache.get(module.weight, 1, build)
        if how == "add_":
            module.weight.add_(1)
        elif how == "data":
            module.weight.data = torch.randn(3, 3)
        elif how == "copy_ through data":
            module.weight.data.copy_(torch.randn(3, 3))
        elif how == "another parameter":
            module.weight = nn.Parameter(torch.randn(3, 3))
        else:
            module.load_state_dict({"weight": torch.randn(3, 3), "bias": torch.randn(3)})
        assert torch.equal(cache.get(module.weight, 1, build), module.weight * 2)
        assert build.calls == 2


def test_a_parameter_at_a_freed_address_is_another_one() -> None:
    cache, build = PositionTableCache(), Counter()
    with torch.no_grad():
        for value in range(5):
            parameter = nn.Parameter(torch.full((64, 64), float(value)))
            assert (cache.get(parameter, 1, build) == 2 * value).all()
            del parameter
            gc.collect()


def test_tables_made_in_inference_mode_can_be_trained_on() -> None:
    cache, parameter, build = PositionTableCache(), nn.Parameter(torch.randn(4, 4), requires_grad=False), Counter()
    with torch.inference_mode():
        cache.get(parameter, 1, build)
    other = nn.Parameter(torch.randn(4, 4))
    (other * cache.get(parameter, 1, build)).sum().backward()
    assert other.grad is not None and build.calls == 1


def test_threads_may_share_a_cache() -> None:
    cache, parameter = PositionTableCache(max_entries=2), nn.Parameter(torch.randn(4, 4), requires_grad=False)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            sizes = [index % 7 for index in range(3000)]
            tables = list(pool.map(lambda size: cache.get(parameter, size, lambda table: table * size), sizes))
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(table, parameter * size) for table, size in zip(tables, sizes, strict=True))


def test_a_training_step_empties_the_cache() -> None:
    cache, parameter, build = PositionTableCache(), nn.Parameter(torch.randn(4, 4)), Counter()
    with torch.no_grad():
        cache.get(parameter, 1, build)
    cache.get(parameter, 1, build)
    assert len(cache) == 0


def test_transforms_and_swapped_tensors() -> None:
    cache, build = PositionTableCache(), Counter()
    stacked = torch.randn(3, 4, 4)
    with torch.no_grad():
        doubled = torch.func.vmap(lambda table: cache.get(table, 1, build))(stacked)
        assert torch.equal(doubled, stacked * 2) and len(cache) == 0
        first, second = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
        cache.get(first, 1, build)
        torch.utils.swap_tensors(first, second)
        assert (cache.get(first, 1, build) == 2).all()


def test_old_grids_make_room() -> None:
    cache, parameter, build = PositionTableCache(max_entries=2), nn.Parameter(torch.randn(4, 4)), Counter()
    with torch.no_grad():
        for size in (1, 2, 1, 3, 1):
            cache.get(parameter, size, build)
    assert len(cache) == 2 and build.calls == 3


def test_copies_and_pickles_start_empty() -> None:
    cache, parameter = PositionTableCache(), nn.Parameter(torch.randn(4, 4))
    with torch.no_grad():
        cache.get(parameter, 1, Counter())
    assert len(copy.deepcopy(cache)) == 0
    assert len(pickle.loads(pickle.dumps(cache))) == 0
