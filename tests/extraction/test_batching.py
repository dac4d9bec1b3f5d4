"""Batches: how the budget cuts them, and how failed pages travel with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder.extraction import PageError, list_pages
from deepencoder.extraction.batching import MAX_FAILED, BatchBudget, cut_batches
from deepencoder.extraction.pages import FailedPage
from deepencoder.extraction.preparation import PreparedImage

from .corpus import write_pictures
from .helpers import iterate, load_once

CPU = torch.device("cpu")


def image(side: int = 32, tiles: int = 0) -> PreparedImage:
    pixels = np.zeros((tiles, 3, side, side), np.uint8) if tiles else None
    return PreparedImage(side, side, "", np.zeros((3, side, side), np.uint8), pixels, (max(1, tiles), 1))


def cut(entries: list[Any], budget: BatchBudget, **options: Any) -> list[list[int]]:
    """Cut numbered entries into batches, and return their numbers."""
    return [[number for number, _ in batch] for batch in cut_batches(enumerate(entries), budget, **options)]


def test_batches_have_a_number_of_pages() -> None:
    assert cut([image()] * 5, BatchBudget(2, CPU)) == [[0, 1], [2, 3], [4]]
    assert cut([], BatchBudget(2, CPU)) == []


def test_batches_have_a_number_of_pixels() -> None:
    budget = BatchBudget("auto", CPU)
    budget.pixels = 3 * 32 * 32
    assert cut([image()] * 5, budget) == [[0, 1, 2], [3, 4]]
    # The next image is taken to be as large as the last one, tiles included.
    assert cut([image(), image(tiles=1), image(), image(tiles=9), image()], budget) == [[0, 1], [2, 3], [4]]


def test_a_batch_ends_where_the_size_of_the_view_changes() -> None:
    assert cut([image(32), image(32), image(16), image(32)], BatchBudget(8, CPU)) == [[0, 1], [2], [3]]


def test_failed_pages_do_not_wait_for_a_batch_to_fill() -> None:
    failed = PageError("it cannot be used")
    assert cut([failed, failed, image(), failed, image()], BatchBudget(8, CPU)) == [[0], [1], [2, 3, 4]]
    many = [image(), *[failed] * (MAX_FAILED + 2)]
    assert cut(many, BatchBudget(8, CPU)) == [[*range(MAX_FAILED + 1)], [MAX_FAILED + 1], [MAX_FAILED + 2]]


def test_a_stop_drops_the_batch_that_was_begun() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 4

    assert cut([image()] * 9, BatchBudget(2, CPU), stop=stop) == [[0, 1]]
    assert cut([image()] * 3, BatchBudget(2, CPU), stop=lambda: True) == []


@pytest.mark.parametrize("batch_size", [0, -1, "many", 1.5])
def test_batch_sizes_are_checked(batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be"):
        BatchBudget(batch_size, CPU)


def test_a_budget_shrinks_to_half_of_what_did_not_fit() -> None:
    budget = BatchBudget(8, CPU)
    budget.halve([image()] * 5)
    assert budget.pages == 2 and budget.pixels == 5 * 32 * 32 // 2
    budget.halve([image()] * 8)
    assert budget.pages == 2
    budget.halve([image()])
    assert budget.pages == 1


def test_failed_pages_do_not_pile_up_behind_a_batch(fixed: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    good, drawn = next(list_pages([tmp_path])), []

    def one_good_page() -> Any:
        yield good
        for number in range(1000):
            drawn.append(number)
            yield FailedPage("bad", number, error="x")

    rows = iterate(one_good_page(), *load_once(fixed), outputs=("pooled",), batch_size=4, workers=0)
    assert next(rows).page == good and len(drawn) < 100
    assert [row.page.page for row in rows] == list(range(1000))
