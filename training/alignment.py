"""A loss that asks for a token's text, and leaves to the reader in which slots it puts the characters.

Unusual: where a character lies near the border of two cells, no reader can know in which of them its centre is. Taught
by cells alone, it is in doubt between them, and writes the character twice or not at all. This loss sums the
probabilities of all ways to put the text into the slots in order, as connectionist temporal classification does, but
without merging what repeats. It takes the posterior probabilities of the placements, computed without gradients, as
targets of a cross-entropy: the gradient is the same.

Source of the idea: Graves et al., *Connectionist temporal classification* (2006).
"""

import torch

__all__ = ["alignment_loss", "placements"]


@torch.no_grad()
def placements(
    empty: torch.Tensor, emit: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the posterior probabilities of all placements of a text in order.

    Args:
        empty (`(n, slots)`): probability that a slot is empty.
        emit (`(n, slots, longest)`): probability that a slot holds each character of its text.
        lengths (`(n,)`): number of characters of each text.

    Returns:
        the probability of each text, `(n,)`, and, given the text, the probability that each slot is empty, `(n,
        slots)`, or holds each of its characters, `(n, slots, longest)`. They are 0 where the text is impossible.
    """
    count, slots, longest = emit.shape
    # (slots, n, ..), in float64: the products would be too small for float32.
    empty, emit = empty.double().T.contiguous(), emit.double().transpose(0, 1).contiguous()
    before = emit.new_zeros(slots + 1, count, longest + 1)
    after = emit.new_zeros(slots + 1, count, longest + 1)
    before[0, :, 0] = 1
    after[slots].scatter_(1, lengths[:, None], 1.0)
    for slot in range(slots):
        torch.mul(before[slot], empty[slot, :, None], out=before[slot + 1])
        before[slot + 1, :, 1:].addcmul_(before[slot, :, :-1], emit[slot])
    for slot in reversed(range(slots)):
        torch.mul(after[slot + 1], empty[slot, :, None], out=after[slot])
        after[slot, :, :-1].addcmul_(after[slot + 1, :, 1:], emit[slot])
    total = after[0, :, 0]
    scale = torch.where(total > 0, 1 / total.clamp_min(1e-300), 0.0)
    stays = (before[:-1] * after[1:]).sum(-1) * empty * scale
    moves = before[:-1, :, :-1] * after[1:, :, 1:] * emit * scale[:, None]
    return total, stays.T.float(), moves.transpose(0, 1).float()


def alignment_loss(log_probabilities: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Return the negative log-probability of the texts of tokens, for each character.

    Args:
        log_probabilities (`(n, slots, characters)`): of the characters of each slot, in reading order.
        slots (`(n, slots)`): the texts, with 0 for empty slots, which count for nothing.
    """
    lengths = (slots > 0).sum(1)
    longest = max(1, int(lengths.max()))
    order = (slots == 0).int().argsort(dim=1, stable=True)[:, :longest]
    texts = slots.gather(1, order)
    empty = log_probabilities[..., 0]
    emit = log_probabilities.gather(2, texts[:, None].expand(-1, slots.shape[1], -1))
    _, stays, moves = placements(empty.exp(), emit.exp(), lengths)
    # 0 * -inf is not 0.
    loss = (stays * empty.clamp_min(-100)).sum() + (moves * emit.clamp_min(-100)).sum()
    return -loss / lengths.sum().clamp_min(1)
