"""The text of a page, put together from the characters in its tokens' boxes.

Unusual: a token knows nothing of lines that go on beside its box. Characters of a line have one row of cells within a
token, and in the token beside it the same row or a neighbour of it. So lines are joined from token to token, by rows
that continue each other without a gap as wide as that between columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from ..processing.token_layout import TokenLayout
from .reading_head import ReadingHead
from .reading_order import TextLine, in_reading_order

__all__ = ["PageText", "find_rows", "read_page"]

LARGEST_SHIFT = 0.6
"""Rows by which a line may shift from token to token, in units of the usual distance of its characters."""
Characters = list[tuple[float, str]]
"""Characters and their places, in cells from the left."""
Row = tuple[int, Characters]
"""A row of cells, and the characters in it."""
WIDEST_STEP = 2.6
"""Distance of consecutive characters of a line in units of their usual distance. The gap of columns is wider."""


@dataclass(frozen=True)
class PageText:
    """What was read of a page.

    Args:
        text (`str`): the text of the page, a line of text for each line of print.
        tokens (`list[str]` of length `L`): the text in the box of each vision token, a line for each line of print, in
            the order of [`~DeepEncoderImageProcessor.get_token_layout`]; empty for newlines, the separator and
            padding.
        layout ([`~deepencoder.TokenLayout`]): where the tokens lie on the page.
    """

    text: str
    tokens: list[str]
    layout: TokenLayout = field(repr=False)


@dataclass(frozen=True)
class _Run:
    """Characters in one row of cells of a token, without a wide gap. Places are in cells of the whole grid."""

    characters: Characters
    row: int
    step: float
    """Usual distance of consecutive characters."""

    @property
    def left(self) -> float:
        return self.characters[0][0]

    @property
    def right(self) -> float:
        return self.characters[-1][0]


def read_page(head: ReadingHead, vision_tokens: torch.Tensor, layout: TokenLayout) -> PageText:
    """Read the vision tokens of a page.

    The text is put together from the tokens of the tiles, if the page has tiles, and else from those of the view.

    Args:
        head: the head that belongs to the encoder.
        vision_tokens (`torch.Tensor` of shape `(L, token_dim)`): the tokens.
        layout: where they lie on the page.

    Raises:
        `ValueError`: the tokens are not those of the layout, or not as wide as the head's.
    """
    if len(vision_tokens) != len(layout):
        raise ValueError(f"vision_tokens has {len(vision_tokens)} tokens, but layout has {len(layout)}.")
    slots = head.read(vision_tokens)  # (L, cells, cells, slots)
    slots[~np.isin(layout.kind, ("tile", "view")) | layout.is_padding] = ""
    tokens = ["\n".join(_text_of(row) for _, row in find_rows(token)) for token in slots]
    grid = layout.mosaic_index if layout.mosaic_index.size else layout.view_index
    lines = in_reading_order(_join_runs(_find_runs(slots[grid])))
    return PageText("\n".join(line.text for line in lines), tokens, layout)


def _steps(characters: Characters) -> list[float]:
    """Return the distances of consecutive characters."""
    places = [place for place, _ in characters]
    return [later - earlier for earlier, later in zip(places[:-1], places[1:], strict=True)]


def _usual_step(characters: Characters, page: float) -> float:
    """Return the usual distance of the characters of a row.

    Args:
        characters: the row.
        page: the usual distance on the page, for rows of few characters. Two characters may be farther apart, as those
            of a heading are, but not as far as the columns of a page.
    """
    steps = _steps(characters)
    if len(steps) >= 2:
        return median(steps)
    return max([page, *(step for step in steps if step <= WIDEST_STEP * page)])


def _text_of(characters: Characters) -> str:
    return "".join(text for _, text in characters)


def find_rows(cells: np.ndarray) -> list[Row]:
    """Return the rows that hold text of the cells of a token, or of tokens above each other.

    Args:
        cells (`np.ndarray` of shape `(rows, columns, slots)`): strings of at most one character.
    """
    rows: list[Row] = []
    for row, columns in enumerate(cells):
        found: Characters = []
        for column, slots in enumerate(columns):
            texts = [text for text in slots.tolist() if text]
            found += [(column + (place + 0.5) / len(texts), text) for place, text in enumerate(texts)]
        if found:
            rows.append((row, found))
    return _merge_rows(rows)


def _merge_rows(rows: Sequence[Row]) -> list[Row]:
    """Merge rows that are one line of print, whose middle lies between two rows of cells.

    The head may then put some characters into one row, some into the other, and some into both.

    Args:
        rows: from top to bottom.
    """
    merged: list[Row] = []
    for row, characters in rows:
        if merged and row == merged[-1][0] + 1 and _are_one_line(merged[-1][1], characters):
            merged[-1] = _unite(merged[-1], (row, characters))
        else:
            merged.append((row, characters))
    return merged


def _are_one_line(above: Characters, below: Characters) -> bool:
    """Return whether two rows are side by side, or at least half of one is also in the other."""
    if above[-1][0] < below[0][0] or below[-1][0] < above[0][0]:
        return True
    fewer, more = sorted((above, below), key=len)
    same = sum(any(text == other and abs(place - at) <= 1 for at, other in more) for place, text in fewer)
    return 2 * same >= len(fewer)


def _unite(one: Row, other: Row) -> Row:
    """Add to the row with more characters those of the other for which it has none at that place."""
    (_, few), (row, many) = sorted((one, other), key=lambda item: len(item[1]))
    added = [
        (place, text)
        for place, text in few
        if not any(abs(place - at) < (1.5 if text == there else 0.75) for at, there in many)
    ]
    return row, sorted([*many, *added])


def _find_runs(slots: np.ndarray) -> list[list[_Run]]:
    """Return the runs of each column of tokens, given the slots `(rows, columns, cells, cells, slots)`."""
    height, width, side = slots.shape[:3]
    # (rows, columns, cells, cells, slots) -> (columns, rows * cells, cells, slots)
    strips = slots.swapaxes(0, 1).reshape(width, height * side, *slots.shape[3:])
    rows = [
        [(row, [(column * side + place, text) for place, text in characters]) for row, characters in find_rows(strip)]
        for column, strip in enumerate(strips)
    ]
    usual = median([step for strip in rows for _, characters in strip for step in _steps(characters)] or [1.0])
    return [[run for row, characters in strip for run in _split_at_gaps(characters, row, usual)] for strip in rows]


def _widest_step(step: float) -> float:
    return WIDEST_STEP * step + 1  # Places are known to one cell.


def _split_at_gaps(characters: Characters, row: int, usual: float) -> Iterator[_Run]:
    """Cut a row where its characters are farther apart than those of a line; `usual` is for rows of few characters."""
    step = _usual_step(characters, usual)
    start = 0
    for index in range(1, len(characters) + 1):
        if index == len(characters) or characters[index][0] - characters[index - 1][0] > _widest_step(step):
            yield _Run(characters[start:index], row, step)
            start = index


def _join_runs(columns: list[list[_Run]]) -> list[TextLine]:
    """Join the runs of neighbouring columns of tokens to lines, the nearest rows first."""
    open_lines: list[list[_Run]] = []  # Those that have reached the column before.
    lines: list[list[_Run]] = []
    for runs in columns:
        pairs = sorted(
            (abs(line[-1].row - run.row), run.left - line[-1].right, line_index, run_index)
            for line_index, line in enumerate(open_lines)
            for run_index, run in enumerate(runs)
            if _continues(line[-1], run)
        )
        used_lines: set[int] = set()
        used_runs: set[int] = set()
        for *_, line_index, run_index in pairs:
            if line_index not in used_lines and run_index not in used_runs:
                open_lines[line_index].append(runs[run_index])
                used_lines.add(line_index)
                used_runs.add(run_index)
        new = [[run] for index, run in enumerate(runs) if index not in used_runs]
        lines += new
        open_lines = [open_lines[index] for index in used_lines] + new
    return [_to_line(line) for line in lines]


def _continues(earlier: _Run, later: _Run) -> bool:
    gap, step = later.left - earlier.right, max(earlier.step, later.step)
    # The rows of large print are farther apart, and it is harder to say in which of them the middle of a line is.
    return abs(earlier.row - later.row) <= max(1, LARGEST_SHIFT * step) and 0 < gap <= _widest_step(step)


def _to_line(runs: list[_Run]) -> TextLine:
    text = "".join(_text_of(run.characters) for run in runs)
    middle = sum(run.row * len(run.characters) for run in runs) / sum(len(run.characters) for run in runs)
    return TextLine(text.strip(), runs[0].left, runs[-1].right, middle)
