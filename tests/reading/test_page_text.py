import numpy as np
import pytest
import torch

from deepencoder import DeepEncoderImageProcessor
from deepencoder.processing.token_layout import TokenLayout
from deepencoder.reading.page_text import read_page
from deepencoder.reading.reading_head import ReadingHead


class Printed:
    """A head that finds in each token what a test has printed there."""

    def __init__(self, slots: np.ndarray) -> None:
        self.slots = slots

    def read(self, tokens: torch.Tensor) -> np.ndarray:
        return self.slots.copy()


def print_line(slots: np.ndarray, index: np.ndarray, text: str, row: float, column: float, step: float = 1.0) -> None:
    """Put a line of text into the slots of tokens `(L, 8, 8, 3)`; `row` and `column` are in cells of the grid."""
    for number, character in enumerate(text):
        place = column + number * step
        cell = slots[index[int(row) // 8, int(place) // 8], int(row) % 8, int(place) % 8]
        cell[int(np.argmax(cell == ""))] = character


def layout_of(height: int, width: int, **fields: object) -> TokenLayout:
    return DeepEncoderImageProcessor(**fields).get_token_layout(height, width)  # type: ignore[arg-type]


def read(slots: np.ndarray, layout: TokenLayout) -> tuple[str, list[str]]:
    head: ReadingHead = Printed(slots)  # type: ignore[assignment]
    page = read_page(head, torch.zeros(len(layout), 4), layout)
    return page.text, page.tokens


@pytest.fixture
def view() -> TokenLayout:
    return layout_of(512, 512, mode="tiny")


def empty_slots(layout: TokenLayout) -> np.ndarray:
    return np.full((len(layout), 8, 8, 3), "", "<U1")


def test_lines_are_joined_across_tokens(view: TokenLayout) -> None:
    slots = empty_slots(view)
    print_line(slots, view.view_index, "The quick brown fox jumps over the lazy dog.", 3, 4)
    print_line(slots, view.view_index, "And then it sleeps.", 6, 4)
    text, tokens = read(slots, view)
    assert text == "The quick brown fox jumps over the lazy dog.\nAnd then it sleeps."
    assert tokens[:3] == ["The \nAnd ", "quick br\nthen it ", "own fox \nsleeps."]
    assert [tokens[index] for index in np.flatnonzero(view.kind != "view")] == [""] * 9


def test_a_line_that_rises_is_one_line(view: TokenLayout) -> None:
    slots = empty_slots(view)
    for part, row in enumerate((9, 8, 7, 6)):  # From the second row of tokens into the first.
        print_line(slots, view.view_index, "abcdefgh", row, 8 * part)
    print_line(slots, view.view_index, "below", 12, 0)
    assert read(slots, view)[0] == "abcdefgh" * 4 + "\nbelow"


def test_small_print_has_several_characters_in_a_cell(view: TokenLayout) -> None:
    slots = empty_slots(view)
    print_line(slots, view.view_index, "small print of many words", 5, 1, step=0.5)
    assert read(slots, view)[0] == "small print of many words"


def test_columns_are_kept_apart(view: TokenLayout) -> None:
    slots = empty_slots(view)
    for number in range(4):
        print_line(slots, view.view_index, f"left column {number}", 10 + 2 * number, 2)
        print_line(slots, view.view_index, f"right one {number}", 10 + 2 * number, 22)
    expected = [f"left column {number}" for number in range(4)] + [f"right one {number}" for number in range(4)]
    assert read(slots, view)[0].splitlines() == expected


def test_a_row_between_two_rows_of_cells_is_one_line(view: TokenLayout) -> None:
    slots = empty_slots(view)
    print_line(slots, view.view_index, "abc", 4, 0)
    print_line(slots, view.view_index, "def", 5, 3)
    assert read(slots, view)[0] == "abcdef"


def test_the_tiles_of_a_page_are_read_as_one(view: TokenLayout) -> None:
    layout = layout_of(1280, 1280, mode="gundam", max_patches=4)
    slots = empty_slots(layout)
    assert layout.mosaic_index.shape == (20, 20)
    print_line(slots, layout.mosaic_index, "across the edge of two tiles", 83, 66)
    print_line(slots, layout.view_index, "not from the view", 3, 1)
    text, tokens = read(slots, layout)
    assert text == "across the edge of two tiles"
    assert "".join(tokens[index] for index in layout.view_index.ravel()) == "not from the view"


def test_padding_is_not_read() -> None:
    layout = layout_of(512, 1024, mode="base")  # The page fills the middle half.
    slots = empty_slots(layout)
    print_line(slots, layout.view_index, "noise", 2, 1)
    print_line(slots, layout.view_index, "text", 60, 1)
    assert read(slots, layout)[0] == "text"


def test_tokens_of_another_page_are_refused(view: TokenLayout) -> None:
    with pytest.raises(ValueError, match="72 tokens"):
        read_page(Printed(empty_slots(view)), torch.zeros(72, 4), view)  # type: ignore[arg-type]


def test_what_is_in_two_rows_of_cells_is_read_once(view: TokenLayout) -> None:
    """Also where the two rows belong to tokens above each other."""
    slots = empty_slots(view)
    print_line(slots, view.view_index, "winter", 7, 1)
    print_line(slots, view.view_index, "int", 8, 2)  # In the row below, and one character that the other row lacks.
    print_line(slots, view.view_index, "y", 8, 7)
    print_line(slots, view.view_index, "another", 10, 1)
    assert read(slots, view)[0] == "wintery\nanother"
