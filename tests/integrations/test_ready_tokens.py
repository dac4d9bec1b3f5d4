"""Vision tokens take the place of placeholders, in order, whatever their dtype."""

import pytest
import torch

from deepencoder import insert_vision_tokens

IDS = torch.tensor([[1, 9, 9, 2], [9, 3, 4, 9]])
EMBEDS = torch.arange(24.0).reshape(2, 4, 3)


def test_tokens_take_the_place_of_placeholders_in_order() -> None:
    pages = [torch.full((2, 3), -1.5, dtype=torch.float16), torch.full((1, 3), -2.0), torch.full((1, 3), -3.0)]
    before = EMBEDS.clone()
    found = insert_vision_tokens(EMBEDS, IDS, pages, 9)
    expected = EMBEDS.clone()
    expected[0, 1] = expected[0, 2] = -1.5
    expected[1, 0], expected[1, 3] = -2.0, -3.0
    assert torch.equal(found, expected) and torch.equal(EMBEDS, before)


def test_a_prompt_without_pages() -> None:
    found = insert_vision_tokens(EMBEDS, IDS, [], 77)
    assert torch.equal(found, EMBEDS) and found.data_ptr() != EMBEDS.data_ptr()


def test_gradients_reach_tokens_and_embeddings() -> None:
    embeds, tokens = EMBEDS.clone().requires_grad_(), torch.ones(4, 3, requires_grad=True)
    insert_vision_tokens(embeds, IDS, tokens.split(2), 9).square().sum().backward()
    assert embeds.grad is not None and tokens.grad is not None
    assert torch.equal(tokens.grad, torch.full((4, 3), 2.0))
    assert embeds.grad[0, 1].eq(0).all() and torch.equal(embeds.grad[0, 0], 2 * EMBEDS[0, 0])


@pytest.mark.parametrize(
    ("embeds", "tokens", "message"),
    [
        (EMBEDS, [torch.ones(3, 3)], "3 tokens for 4 placeholders 9"),
        (EMBEDS, [torch.ones(4, 2)], r"vision_tokens\[0\] must have shape \(length, 3\)"),
        (EMBEDS, [torch.ones(2, 2, 3)], r"vision_tokens\[0\]"),
        (EMBEDS[:1], [torch.ones(4, 3)], "inputs_embeds must have shape"),
        (EMBEDS, [torch.ones(1, 3), torch.ones(3, 3)], "a page begins in prompt 0 and ends in the next"),
    ],
)
def test_what_does_not_fit_is_refused(embeds: torch.Tensor, tokens: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        insert_vision_tokens(embeds, IDS, tokens, 9)
