"""How well the page reader reads pages that it has never seen.

Unusual: a page's text is compared token by token, in boxes of 64 pixels, so an error cannot hide in the order of the
tokens; and each token counts at the number of characters that it holds.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch

from deepencoder.reading.alphabet import ALPHABET, encode_text
from deepencoder.reading.page_text import find_rows

from .corpus import make_batch
from .materials import Materials
from .pages import Page, PageStyle, draw_page
from .reader import ReadingObjective
from .targets import bordering_texts, token_texts

__all__ = ["Scores", "edit_distance", "evaluate_reading", "held_out_pages", "read_tokens", "score_pages"]

SIZES = (14, 18, 24, 32, 40)
"""Sizes of print that are evaluated apart while training runs, in pixels."""

BORDER = 3.0
"""Distance in pixels from the edge of a token's box within which a character may belong to both sides."""


def edit_distance(read: list[int], truth: list[int], required: list[bool] | None = None) -> int:
    """Return the number of characters to insert, delete or replace to turn one text into the other.

    Args:
        read, truth: the texts.
        required: which characters of `truth` count when they are left out; by default all.
    """
    costs = [1] * len(truth) if required is None else list(map(int, required))
    previous = [0]
    for cost in costs:
        previous.append(previous[-1] + cost)
    for row, character in enumerate(read, 1):
        current = [row]
        for column, (expected, cost) in enumerate(zip(truth, costs, strict=True), 1):
            replaced = previous[column - 1] + (character != expected)
            current.append(min(previous[column] + 1, current[-1] + cost, replaced))
        previous = current
    return previous[-1]


def read_tokens(logits: torch.Tensor) -> list[list[int]]:
    """Return the characters of each token from the head's logits `(n, 8, 8, 3, characters)`."""
    characters = np.array(["", *ALPHABET[1:]])[logits.argmax(-1).cpu().numpy()]
    return [encode_text("".join(text for _, row in find_rows(token) for _, text in row)) for token in characters]


class Scores:
    """Characters and errors of tokens, by the number of characters in the token."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = defaultdict(int)
        self.errors: dict[int, int] = defaultdict(int)
        self.inner_errors: dict[int, int] = defaultdict(int)
        self.example: tuple[str, str] = ("", "")

    def add(self, read: list[int], truth: list[int], bordering: tuple[list[int], list[bool]]) -> None:
        self.tokens[len(truth)] += 1
        errors = edit_distance(read, truth)
        self.errors[len(truth)] += errors
        self.inner_errors[len(truth)] += min(errors, edit_distance(read, *bordering))
        if len(truth) > 2 and sum(self.tokens.values()) % 50 < 25:
            self.example = ("".join(map(ALPHABET.__getitem__, truth)), "".join(map(ALPHABET.__getitem__, read)))

    def accuracy(self, fewest: int = 0, most: int = 10**6, is_inner: bool = False) -> float:
        """Return 1 - errors / characters over the tokens with `fewest` to `most` characters; nan without any.

        With `is_inner`, characters whose centres are within [`BORDER`] pixels of the edge of a box may be written by
        the tokens on both sides of it, by one, or by none.
        """
        counts = [count for count in self.tokens if fewest <= count <= most]
        characters = sum(count * self.tokens[count] for count in counts)
        errors = self.inner_errors if is_inner else self.errors
        return 1 - sum(errors[count] for count in counts) / characters if characters else float("nan")

    def density(self) -> float:
        """Return the mean number of characters of tokens that hold more than two."""
        filled = {count: number for count, number in self.tokens.items() if count > 2}
        return sum(count * number for count, number in filled.items()) / max(1, sum(filled.values()))


def held_out_pages(folder: str, side: int = 512, count: int = 4) -> dict[int, list[Page]]:
    """Draw pages of held-out texts and fonts for each of [`SIZES`]: clean prints without damage."""
    materials = Materials(folder, "test")
    styles = {size: PageStyle(side, side, (size, size), cut=False, varied=False) for size in SIZES}
    return {size: [draw_page(10**12 + n, materials, style) for n in range(count)] for size, style in styles.items()}


@torch.no_grad()
def score_pages(reader: ReadingObjective, pages: Iterable[Page], scores: Scores | None = None) -> Scores:
    """Read pages, one at a time, and add up the errors of their tokens."""
    scores = Scores() if scores is None else scores
    device = next(reader.parameters()).device
    for page in pages:
        pixels = make_batch([page])["pixels"].to(device).float() / 127.5 - 1
        _, tokens, _ = reader.encode(pixels)
        read = read_tokens(reader.head(tokens.flatten(0, 2)).float())
        truth = [text for row in token_texts(page) for text in row]
        bordering = [text for row in bordering_texts(page, BORDER) for text in row]
        for ours, theirs, around in zip(read, truth, bordering, strict=True):
            scores.add(ours, theirs, around)
    return scores


def evaluate_reading(reader: ReadingObjective, pages: dict[int, list[Page]]) -> dict[str, object]:
    """Measure the character accuracy of tokens: 1 - (edit distance / characters), summed over all tokens.

    Returns:
        for each size of print the mean number of characters in a token with text, and the accuracy, of all characters
        and without the edges of boxes; and an example.
    """
    result: dict[str, object] = {}
    for size, group in pages.items():
        scores = score_pages(reader, group)
        result[str(size)] = [
            round(scores.density(), 1),
            round(scores.accuracy(), 4),
            round(scores.accuracy(is_inner=True), 4),
        ]
        result[f"example_{size}"] = list(scores.example)
    return result
