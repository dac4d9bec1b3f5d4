"""How well the page reader reads pages that it has never seen."""

import torch

from .alphabet import ALPHABET
from .corpus import make_batch
from .materials import Materials
from .pages import Page, PageStyle, draw_page
from .reader import ReadingObjective
from .targets import token_texts

__all__ = ["edit_distance", "evaluate_reading", "held_out_pages", "read_tokens"]

SIZES = (14, 18, 24, 32, 40)
"""Sizes of print that are evaluated apart, in pixels."""


def edit_distance(one: list[int], other: list[int]) -> int:
    """Return the number of characters to insert, delete or replace to turn one text into the other."""
    previous = list(range(len(other) + 1))
    for row, character in enumerate(one, 1):
        current = [row]
        for column, expected in enumerate(other, 1):
            replaced = previous[column - 1] + (character != expected)
            current.append(min(previous[column] + 1, current[-1] + 1, replaced))
        previous = current
    return previous[-1]


def read_tokens(logits: torch.Tensor) -> list[list[int]]:
    """Return the characters of each token from the head's logits `(n, 8, 8, 3, characters)`."""
    best = logits.argmax(-1).flatten(1).tolist()
    return [[character for character in slots if character] for slots in best]


def held_out_pages(folder: str, side: int = 512, count: int = 4) -> dict[int, list[Page]]:
    """Draw pages of held-out texts and fonts for each of [`SIZES`]: clean prints without damage."""
    materials = Materials(folder, "test")
    styles = {size: PageStyle(side, side, (size, size), cut=False, varied=False) for size in SIZES}
    return {size: [draw_page(10**12 + n, materials, style) for n in range(count)] for size, style in styles.items()}


@torch.no_grad()
def evaluate_reading(reader: ReadingObjective, pages: dict[int, list[Page]]) -> dict[str, object]:
    """Measure the character accuracy of tokens: 1 - (edit distance / characters), summed over all tokens.

    Returns:
        for each size of print the mean number of characters in a token with text, and the accuracy; and an example.
    """
    device = next(reader.parameters()).device
    result: dict[str, object] = {}
    for size, group in pages.items():
        pixels = make_batch(group)["pixels"].to(device).float() / 127.5 - 1
        _, tokens, _ = reader.encode(pixels)
        read = read_tokens(reader.head(tokens.flatten(0, 2)).float())
        truth = [text for page in group for row in token_texts(page) for text in row]
        wrong = sum(edit_distance(ours, theirs) for ours, theirs in zip(read, truth, strict=True))
        total = sum(map(len, truth))
        filled = [index for index, text in enumerate(truth) if len(text) > 2]
        result[str(size)] = [round(total / max(1, len(filled)), 1), round(1 - wrong / total, 4)]
        example = filled[len(filled) // 2]
        texts = ("".join(ALPHABET[character] for character in text[example]) for text in (truth, read))
        result[f"example_{size}"] = list(texts)
    return result
