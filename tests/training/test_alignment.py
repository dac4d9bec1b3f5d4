import itertools

import torch

from training.alignment import alignment_loss, placements


def summed(probabilities: torch.Tensor, text: list[int]) -> torch.Tensor:
    """Sum the probabilities of all placements, one by one."""
    slots, total = probabilities.shape[0], torch.zeros(())
    for chosen in itertools.combinations(range(slots), len(text)):
        held = dict(zip(chosen, text, strict=True))
        total = total + torch.stack([probabilities[slot, held.get(slot, 0)] for slot in range(slots)]).prod()
    return total


def test_all_placements_count() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4, requires_grad=True)
    slots = torch.tensor([[0, 2, 2, 0, 0], [0, 0, 0, 0, 0], [1, 3, 0, 0, 1]])
    texts = [[2, 2], [], [1, 3, 1]]
    totals = torch.stack([summed(one.softmax(-1), text) for one, text in zip(logits, texts, strict=True)])
    (expected,) = torch.autograd.grad(-totals.log().sum() / 5, logits)
    (gradient,) = torch.autograd.grad(alignment_loss(logits.log_softmax(-1), slots), logits)
    torch.testing.assert_close(gradient, expected)


def test_posteriors_are_probabilities() -> None:
    torch.manual_seed(0)
    empty, emit = torch.rand(2, 6), torch.rand(2, 6, 3)
    total, stays, moves = placements(empty, emit, torch.tensor([3, 2]))
    assert (total > 0).all()
    torch.testing.assert_close(stays + moves.sum(2), torch.ones(2, 6))
    torch.testing.assert_close(moves.sum(1), torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]))


def test_a_text_that_is_impossible_gives_no_gradient() -> None:
    logits = torch.zeros(1, 2, 3)
    logits[..., 2] = -1e5
    logits.requires_grad_()
    loss = alignment_loss(logits.log_softmax(-1), torch.tensor([[2, 0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.equal(logits.grad, torch.zeros(1, 2, 3))
