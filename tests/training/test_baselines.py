import random

import torch

from training.baselines import LONGEST, MeanPooled, draw_texts
from training.materials import Materials


def test_texts_have_their_lengths_and_go_on(materials: Materials) -> None:
    texts = draw_texts(materials, random.Random(0), [3, 40, 1])
    assert texts.shape == (3, LONGEST) and (texts > 0).sum(1).tolist() == [3, 40, 1]
    assert torch.equal(texts, draw_texts(materials, random.Random(0), [3, 40, 1]))


def test_the_mean_depends_on_characters_and_their_places() -> None:
    torch.manual_seed(0)
    model = MeanPooled(width=16)
    texts = torch.zeros(4, LONGEST, dtype=torch.long)
    texts[0, :3], texts[1, :3], texts[2, :4] = (
        torch.tensor([5, 6, 7]),
        torch.tensor([6, 5, 7]),
        torch.tensor([5, 6, 7, 8]),
    )
    logits = model(texts)
    assert logits.shape == (4, 8, 8, 3, len(model.head.config.alphabet)) and logits.isfinite().all()
    assert len({tuple(row.flatten()[:50].tolist()) for row in logits}) == 4
