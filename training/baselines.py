"""What a vector of the page reader's size can hold if it is made from the text itself, without any picture.

Unusual: these baselines know the text and need not see it, so they bound from another side what a vision token is
worth. arXiv 2512.03643 shows that mean-pooled embeddings and truncated text are strong, and that a comparison of
vision tokens with text has to have them.
"""

import random

import torch
from torch import nn

from deepencoder.reading import ReadingHead, ReadingHeadConfig
from deepencoder.reading.alphabet import encode_text

from .evaluation import edit_distance, read_tokens
from .materials import Materials
from .reader import slot_loss

__all__ = ["CHARACTERS_PER_TEXT_TOKEN", "MeanPooled", "draw_texts", "score_baselines"]

CHARACTERS_PER_TEXT_TOKEN = 4.35
"""Of GPT-2's vocabulary on the held-out texts: 275,625 characters in 63,343 tokens."""
LONGEST = 48
"""Characters of the longest text."""


class MeanPooled(nn.Module):
    """A text as the mean of products of embeddings of its characters and of their positions, and a head that reads it.

    Args:
        width: width of the vector; the head is the page reader's.
    """

    def __init__(self, width: int = 448) -> None:
        super().__init__()
        self.head = ReadingHead(ReadingHeadConfig(token_dim=width))
        self.characters = nn.Embedding(len(self.head.config.alphabet), width)
        self.positions = nn.Embedding(LONGEST, width)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        """Compute the logits of all slots, `(batch, 8, 8, 3, characters)`, from texts `(batch, LONGEST)`.

        0 stands for no character. The texts are read from the first slots on.
        """
        filled = (texts > 0)[..., None]
        vectors = (self.characters(texts) * self.positions.weight * filled).sum(1) / filled.sum(1).clamp_min(1)
        return self.head(vectors)


def draw_texts(materials: Materials, generator: random.Random, lengths: list[int]) -> torch.Tensor:
    """Return texts of these lengths from the materials, `(n, LONGEST)`."""
    texts = torch.zeros(len(lengths), LONGEST, dtype=torch.long)
    line: list[int] = []
    blocks = materials.passage(generator)
    for row, length in enumerate(lengths):
        while len(line) < length:
            line += encode_text(" ".join(next(blocks).text.split()) + " ")
        texts[row, :length] = torch.tensor(line[:length])
        del line[:length]
    return texts


def train_mean_pooled(materials: Materials, steps: int, batch_size: int = 256) -> MeanPooled:
    torch.manual_seed(0)
    generator, model = random.Random(0), MeanPooled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        texts = draw_texts(materials, generator, [generator.randint(2, LONGEST) for _ in range(batch_size)])
        targets = torch.zeros(len(texts), 8 * 8 * 3, dtype=torch.long)
        targets[:, :LONGEST] = texts
        slot_loss(model(texts).flatten(1, 3), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.no_grad()
def score_baselines(folder: str, lengths: tuple[int, ...], steps: int = 2500, count: int = 500) -> dict[str, object]:
    """Return the character accuracy of both baselines for texts of these numbers of characters."""
    with torch.enable_grad():
        model = train_mean_pooled(Materials(folder, "train"), steps)
    test, generator = Materials(folder, "test"), random.Random(1)
    pooled = {}
    for length in lengths:
        texts = draw_texts(test, generator, [length] * count)
        read = read_tokens(model(texts))
        errors = sum(edit_distance(ours, text[:length].tolist()) for ours, text in zip(read, texts, strict=True))
        pooled[length] = round(1 - errors / (length * count), 4)
    truncated = {length: round(min(1.0, CHARACTERS_PER_TEXT_TOKEN / length), 4) for length in lengths}
    return {"mean-pooled embeddings": pooled, "truncated text": truncated}
