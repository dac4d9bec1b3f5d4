"""Vectors for late interaction: which tokens a cell has, what the padding does, and what the projection keeps."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder.processing.token_pooling import VectorOptions, make_vectors


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def test_a_cell_is_the_mean_of_its_own_tokens() -> None:
    torch.manual_seed(0)
    grid = torch.randn(3, 5, 7)  # Cells of 2 x 2 leave a row and a column over.
    shown = torch.ones(3, 5, dtype=torch.bool)
    shown[:, 0] = shown[0, 1] = shown[:, 4] = False
    found = make_vectors(grid.flatten(0, 1), shown, None, 2, None)
    assert found.shape == (6, 7) and found.dtype == torch.float32
    torch.testing.assert_close(found[0], unit(grid[1, 1]))  # Of four tokens, one shows the page.
    torch.testing.assert_close(found[1], unit(grid[:2, 2:4].mean((0, 1))))
    torch.testing.assert_close(found[4], unit(grid[2, 2:4].mean(0)))
    assert not found[2].any() and not found[5].any()


def test_tiles_follow_the_view() -> None:
    torch.manual_seed(0)
    view, tiles = torch.randn(4, 6).bfloat16(), torch.randn(3, 9, 6).bfloat16()
    found = make_vectors(view, torch.ones(2, 2, dtype=torch.bool), tiles, 2, None)
    assert found.shape == (1 + 3 * 4, 6)
    squares = tiles.float().reshape(3, 3, 3, 6)
    torch.testing.assert_close(found[0], unit(view.float().mean(0)))
    torch.testing.assert_close(found[5], unit(squares[1, :2, :2].mean((0, 1))))
    torch.testing.assert_close(found[12], unit(squares[2, 2, 2]))


@pytest.mark.parametrize("pool", [1, 2, 3, 5, 1000])
def test_the_number_of_cells(pool: int) -> None:
    found = make_vectors(torch.randn(20, 3), torch.ones(4, 5, dtype=torch.bool), None, pool, None)
    assert len(found) == VectorOptions(pool).count_cells(4, 5) == len(range(0, 4, pool)) * len(range(0, 5, pool))


def test_the_projection_is_the_documented_one() -> None:
    """It decides which corpora can be compared, so it may never change."""
    projection = VectorOptions(width=24).make_projection(64)
    assert projection is not None and projection.shape == (64, 24) and projection.dtype == np.float32
    stream = hashlib.shake_256(b"deepencoder 64 x 24").digest(192)
    bits = [int(bit) for byte in stream for bit in f"{byte:08b}"]
    signs = np.array([1 - 2 * bit for bit in bits]).reshape(64, 24)
    np.testing.assert_allclose(projection, signs / 24**0.5, rtol=1e-6)
    assert "".join("+-"[int(value < 0)] for value in projection[0, :12]) == "+--+--+-----"
    assert VectorOptions(width=64).make_projection(64) is VectorOptions(width=128).make_projection(64) is None
    assert [VectorOptions(width=128).width_for(hidden) for hidden in (64, 2048)] == [64, 128]


def test_the_projection_keeps_angles() -> None:
    generator = np.random.default_rng(0)
    pairs = generator.standard_normal((2, 500, 2048))
    pairs[1] = 0.7 * pairs[0] + 0.7 * pairs[1]
    projected = pairs @ VectorOptions(width=128).make_projection(2048)

    def cosines(left: Any, right: Any) -> Any:
        return (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)

    errors = cosines(*projected) - cosines(*pairs)
    print(f"mean {errors.mean():.4f}, deviation {errors.std():.4f}")
    # A cosine of c is estimated with a deviation of (1 - c ** 2) / sqrt(width), here 0.044.
    assert abs(errors.mean()) < 0.01 and errors.std() < 0.055
    # The signs of a row say nothing about those of another, nor do those of a column.
    signs = VectorOptions(width=128).make_projection(2048) * 128**0.5
    assert np.abs(signs @ signs.T - 128 * np.eye(2048)).max() < 90 and abs(signs.mean()) < 0.01


@pytest.mark.parametrize("fields", [{"pool": 0}, {"pool": True}, {"width": -1}, {"width": 2.0}, {"pool": "2"}])
def test_options_are_checked(fields: Any) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"vector_{name} must be a positive integer, got"):
        VectorOptions(**fields)


def test_gradients_reach_the_tokens() -> None:
    tokens = torch.randn(4, 6, requires_grad=True)
    shown = torch.tensor([[True, False], [True, False]])
    make_vectors(tokens, shown, None, 1, None).sum().backward()
    assert tokens.grad is not None and tokens.grad[[0, 2]].any() and not tokens.grad[[1, 3]].any()
