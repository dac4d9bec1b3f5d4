"""The order in which the lines of a page are read: columns one after the other.

Unusual: columns are found without any model of pages. A vertical boundary that no line of a band of the page crosses,
with lines on both sides of it side by side, divides that band into two columns; what is above the band is read before
it, and what is below, after it. Cells of a table therefore are read column by column, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

__all__ = ["TextLine", "in_reading_order"]

CLEARANCE = 0.75
"""Distance that the lines of a column keep from its boundary, in cells."""
FEWEST_LINES = 2
"""Lines that a column must have."""
FARTHEST_BESIDE = 0.6
"""Vertical distance of lines that are side by side, in units of the spacing of lines."""


@dataclass(frozen=True)
class TextLine:
    """A line of text, with its place in units of cells.

    Args:
        text: the characters.
        left, right: where it begins and ends.
        middle: how far its middle is from the top of the page.
    """

    text: str
    left: float
    right: float
    middle: float


def in_reading_order(lines: Sequence[TextLine]) -> list[TextLine]:
    """Return lines in the order in which they are read."""
    by_height = sorted(lines, key=lambda line: (line.middle, line.left))
    found = _find_columns(by_height)
    if found is None:
        return by_height
    start, stop, boundary = found
    band = by_height[start:stop]
    parts = (
        by_height[:start],
        [line for line in band if line.right <= boundary],
        [line for line in band if line.left >= boundary],
        by_height[stop:],
    )
    return [line for part in parts for line in in_reading_order(part)]


def _find_columns(lines: list[TextLine]) -> tuple[int, int, float] | None:
    """Return the largest band of lines that a boundary divides: its first line, the one after it, the boundary."""
    best: tuple[int, int, float] | None = None
    # A boundary that divides anything can be moved to the left until it touches a line's end.
    for boundary in sorted({line.right + CLEARANCE for line in lines}):
        start = 0
        for stop in range(len(lines) + 1):
            if stop < len(lines) and not _crosses(lines[stop], boundary):
                continue
            larger = best is None or stop - start > best[1] - best[0]
            if larger and _are_columns(lines[start:stop], boundary):
                best = (start, stop, boundary)
            start = stop + 1
    return best


def _crosses(line: TextLine, boundary: float) -> bool:
    return line.left - CLEARANCE < boundary < line.right + CLEARANCE


def _are_columns(band: list[TextLine], boundary: float) -> bool:
    """Return whether lines are on both sides of a boundary, and at least half of them side by side.

    Indented lines also lie to the right of shorter ones, but above or below them.
    """
    sides = [[line.middle for line in band if (line.left >= boundary) is is_right] for is_right in (False, True)]
    few, many = sorted(sides, key=len)
    if len(few) < FEWEST_LINES:
        return False
    spacing = median_low(later - earlier for earlier, later in zip(many[:-1], many[1:], strict=True))
    beside = sum(any(abs(middle - other) <= FARTHEST_BESIDE * spacing for other in many) for middle in few)
    return 2 * beside >= len(few)
