"""Attention with relative positions, against its definition written out with loops."""

import pytest
import torch

from deepencoder.modeling.attention import eager_attention

from .relative_attention import GRIDS, by_definition, first_queries, make_inputs


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_eager_attention_follows_the_definition(grid: tuple[int, int]) -> None:
    inputs = make_inputs(grid)
    output, weights = eager_attention(inputs)
    torch.testing.assert_close(output, by_definition(inputs))
    torch.testing.assert_close((weights @ inputs.value).transpose(1, 2), output)


@pytest.mark.parametrize("size", [(3, 5), (4, 2), (1, 7)], ids=str)
def test_queries_may_be_the_first_rows_and_columns(size: tuple[int, int]) -> None:
    inputs = make_inputs((4, 7))
    expected = by_definition(inputs).unflatten(1, (4, 7))[:, : size[0], : size[1]].flatten(1, 2)
    part = first_queries(inputs, size)
    assert part.query_grid == size and part.key_grid == (4, 7)
    torch.testing.assert_close(eager_attention(part)[0], expected)


def test_a_block_is_a_part_of_the_output() -> None:
    inputs = make_inputs((4, 7))
    whole, _ = eager_attention(inputs)
    block, _ = eager_attention(inputs.block(slice(1, 2), slice(0, 2), slice(1, 3)))
    torch.testing.assert_close(block, whole[1:2, 7:21, 0:2])


def test_dropout_drops_weights() -> None:
    inputs = make_inputs((4, 4))
    plain, _ = eager_attention(inputs)
    dropped, weights = eager_attention(inputs._replace(dropout=0.5))
    assert not torch.allclose(plain, dropped) and 0.3 < (weights == 0).double().mean() < 0.7
