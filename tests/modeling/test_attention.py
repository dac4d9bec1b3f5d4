"""Attention with relative positions, against its definition written out with loops."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deepencoder.modeling import attention
from deepencoder.modeling.attention import (
    cut_windows,
    eager_relative_position_attention,
    get_relative_position_attention,
    group_windows,
    lengthened_relative_position_attention,
    sdpa_relative_position_attention,
)

GRIDS = [(6, 6), (4, 7), (1, 5), (9, 3)]


def inputs(grid: tuple[int, int], batch: int = 2, heads: int = 3, dim: int = 8) -> list[torch.Tensor]:
    height, width = grid
    shapes = [(batch, heads, height * width, dim)] * 3 + [(height, height, dim), (width, width, dim)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def by_definition(tensors: list[torch.Tensor], grid: tuple[int, int], scaling: float) -> torch.Tensor:
    query, key, value, rows, columns = tensors
    height, width = grid
    scores = torch.empty(*query.shape[:3], query.shape[2], dtype=query.dtype)
    for i in range(height):
        for j in range(width):
            for k in range(height):
                for m in range(width):
                    q, position, other = query[:, :, i * width + j], i * width + j, k * width + m
                    scores[:, :, position, other] = (
                        scaling * (q * key[:, :, other]).sum(-1) + q @ rows[i, k] + q @ columns[j, m]
                    )
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("function", [eager_relative_position_attention, sdpa_relative_position_attention])
def test_attention_follows_the_definition(function, grid: tuple[int, int]) -> None:
    tensors = inputs(grid)
    output, weights = function(nn.Module().eval(), *tensors, scaling=0.3)
    torch.testing.assert_close(output, by_definition(tensors, grid, 0.3))
    if function is eager_relative_position_attention:
        torch.testing.assert_close((weights @ tensors[2]).transpose(1, 2), output)
    else:
        assert weights is None


def lengthened(module: nn.Module, *tensors: torch.Tensor, scaling: float) -> tuple[torch.Tensor, None]:
    return lengthened_relative_position_attention(*tensors, scaling).transpose(1, 2), None


@pytest.mark.parametrize("size", [(3, 5), (4, 2), (1, 7)], ids=str)
@pytest.mark.parametrize("budget", [1, 300, 10**9])
def test_attention_from_the_first_rows_and_columns(
    size: tuple[int, int], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_bias_budget", lambda query, needs_grad: budget)
    grid = (4, 7)
    query, key, value, rows, columns = tensors = inputs(grid)
    expected = by_definition(tensors, grid, 0.3).unflatten(1, grid)[:, : size[0], : size[1]].flatten(1, 2)
    query = query.unflatten(2, grid)[:, :, : size[0], : size[1]].flatten(2, 3)
    part = (query, key, value, rows[: size[0]], columns[: size[1]])
    for function in (eager_relative_position_attention, sdpa_relative_position_attention, lengthened):
        output, _ = function(nn.Module().eval(), *part, scaling=0.3)
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_lengthened_attention_equals_eager_with_its_gradients(grid: tuple[int, int]) -> None:
    results = []
    for function in (eager_relative_position_attention, lengthened):
        torch.manual_seed(0)
        tensors = [tensor.requires_grad_() for tensor in inputs(grid)]
        output, _ = function(nn.Module().eval(), *tensors, scaling=0.3)
        (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in tensors)])
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("grid", [(6, 6), (4, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lengthened_attention_is_as_exact_as_a_bias_in_half_precision(
    grid: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_suits_flash", lambda query, grid: False)
    torch.manual_seed(0)
    tensors = inputs(grid, dim=64)
    exact = by_definition(tensors, grid, 0.125)
    module, halves = nn.Module().eval(), [tensor.to(dtype) for tensor in tensors]
    errors = [
        (function(module, *halves, scaling=0.125)[0].double() - exact).norm().item()
        for function in (lengthened, sdpa_relative_position_attention)
    ]
    assert errors[0] < 1.05 * errors[1] and errors[1] < 0.1 * exact.norm()


@pytest.mark.parametrize("grid, expected", [((64, 64), True), ((14, 14), True), ((96, 96), True), ((97, 96), False)])
def test_flash_takes_what_its_head_size_allows(grid: tuple[int, int], expected: bool) -> None:
    for device, dtype, suits in (
        ("cuda", torch.bfloat16, expected),
        ("cuda", torch.float16, expected),
        ("cuda", torch.float32, False),
        ("cpu", torch.bfloat16, expected),
        ("cpu", torch.float16, False),
        ("cpu", torch.float32, False),
        ("mps", torch.bfloat16, False),
    ):
        query = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 12, grid[0] * grid[1], 64))
        assert attention._suits_flash(query, grid) is suits


@pytest.mark.parametrize("budget", [1, 200, 1_500, 5_000, 10**9])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("lengthens", [False, True])
def test_sdpa_in_blocks_equals_eager(
    budget: int, grad: bool, lengthens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way to cut the batch, the heads and the rows, with the gradients of every input."""
    monkeypatch.setattr(attention, "_bias_budget", lambda query, needs_grad: budget)
    monkeypatch.setattr(attention, "LENGTHENED_BUDGET", budget)
    monkeypatch.setattr(attention, "_suits_flash", lambda query, grid: lengthens)
    module = nn.Module().eval()
    results = []
    for function in (eager_relative_position_attention, sdpa_relative_position_attention):
        torch.manual_seed(0)
        tensors = [tensor.requires_grad_(grad) for tensor in inputs((4, 7))]
        output, _ = function(module, *tensors, scaling=0.3)
        if grad:
            (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in tensors if grad)])
    assert len(results[0]) == (6 if grad else 1)
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)


def test_global_attention_never_holds_the_bias_of_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = attention.scaled_dot_product_attention

    def spy(query, key, value, attn_mask, **kwargs):
        sizes.append(attn_mask.numel())
        return original(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    heads, grid = 12, (40, 40)
    tensors = [tensor.float() for tensor in inputs(grid, batch=1, heads=heads)]
    sdpa_relative_position_attention(nn.Module().eval(), *tensors, scaling=0.3)
    assert len(sizes) > 1 and max(sizes) <= max(6 * 2**20, 2**20 * torch.get_num_threads())
    assert sum(sizes) == heads * 1600**2
    sizes.clear()
    query = torch.randn(1, heads, 1600, 8, requires_grad=True)
    sdpa_relative_position_attention(nn.Module().eval(), query, *tensors[1:], scaling=0.3)
    assert max(sizes) <= 2**24 < heads * 1600**2


def test_dropout_only_in_training() -> None:
    tensors = inputs((4, 4))
    for function in (eager_relative_position_attention, sdpa_relative_position_attention):
        plain, _ = function(nn.Module().eval(), *tensors, scaling=0.3)
        calm, _ = function(nn.Module().eval(), *tensors, scaling=0.3, dropout=0.5)
        dropped, _ = function(nn.Module().train(), *tensors, scaling=0.3, dropout=0.5)
        assert torch.equal(plain, calm) and not torch.allclose(plain, dropped)


@pytest.mark.parametrize("size", [(6, 9), (7, 5), (3, 3), (1, 10)], ids=str)
def test_windows_come_back(size: tuple[int, int]) -> None:
    features = torch.randn(2, size[0] * size[1], 4)
    padding = torch.arange(4.0).expand(2, 1, 4)
    windows = cut_windows(size, 3)
    rows, columns = -(-size[0] // 3), -(-size[1] // 3)
    cut = torch.cat([features, padding], dim=1)[:, windows.positions]
    assert cut.shape == (2, rows * columns * 9, 4)
    assert torch.equal(cut[:, windows.places], features)
    # The second window of the first row begins at column 3.
    if size[1] > 3:
        assert torch.equal(cut[:, 9], features[:, 3])
    assert int((cut == padding).all(-1).sum()) == 2 * (rows * columns * 9 - size[0] * size[1])


@pytest.mark.parametrize(
    "size, sizes",
    [
        ((6, 9), [(3, 3)]),
        ((7, 5), [(3, 3), (3, 2), (1, 3), (1, 2)]),
        ((6, 4), [(3, 3), (3, 1)]),
        ((2, 6), [(2, 3)]),
        ((1, 2), [(1, 2)]),
    ],
    ids=str,
)
def test_groups_of_windows(size: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    groups, places = group_windows(size, 3)
    assert [(group.rows, group.columns) for group in groups] == sizes
    queries = torch.cat([group.queries for group in groups])
    assert torch.equal(queries.sort().values, torch.arange(size[0] * size[1]))
    assert torch.equal(queries[places], torch.arange(size[0] * size[1]))
    keys = torch.cat([group.keys.view(-1, 9) for group in groups])
    windows = cut_windows(size, 3).positions.view(-1, 9)
    assert sorted(keys.tolist()) == sorted(windows.tolist())
    for group in groups:
        # Row by row, the queries are the first rows and columns of their windows.
        first = group.keys.view(-1, 3, 3)[:, : group.rows, : group.columns].flatten()
        assert torch.equal(group.queries, first) and int(first.max()) < size[0] * size[1]


def test_unknown_implementation_is_named() -> None:
    with pytest.raises(ValueError, match="'flash_attention_2'"):
        get_relative_position_attention("flash_attention_2")
    assert get_relative_position_attention(None) is eager_relative_position_attention
