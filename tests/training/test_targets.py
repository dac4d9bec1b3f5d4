import numpy as np
from PIL import Image

from training.damage import _rotate
from training.materials import Materials
from training.pages import REGIONS, Page, PageStyle, draw_page
from training.targets import CELLS, SLOTS, bordering_texts, character_slots, region_kinds, token_texts

STYLE = PageStyle(512, 256, (14, 24), cut=False, varied=False)


def slots_as_texts(slots: np.ndarray) -> list[list[list[int]]]:
    return [[[c for c in token.ravel().tolist() if c] for token in row] for row in slots]


def test_slots_in_order_are_the_texts_of_tokens(materials: Materials) -> None:
    for seed in range(6):
        page = draw_page(seed, materials, STYLE)
        assert slots_as_texts(character_slots(page)) == token_texts(page)


def test_every_character_is_in_the_token_that_holds_its_centre(materials: Materials) -> None:
    page = draw_page(2, materials, STYLE)
    expected = np.zeros((4, 8), dtype=int)
    for left, top, right, bottom in page.boxes:
        expected[int((top + bottom) / 2 // 64), int((left + right) / 2 // 64)] += 1
    assert ((character_slots(page) > 0).sum((2, 3, 4)) == expected).all()


def test_a_skewed_line_keeps_its_order(materials: Materials) -> None:
    for seed, degrees in ((0, 2.0), (1, -2.0)):
        page = _rotate(draw_page(seed, materials, STYLE), degrees)
        texts, slots = token_texts(page), slots_as_texts(character_slots(page))
        for row in range(4):
            for column in range(8):
                inside = in_token(page, row, column)
                by_line = np.lexsort((page.boxes[inside, 0], page.lines[inside]))
                assert texts[row][column] == slots[row][column] == page.characters[inside][by_line].tolist()


def in_token(page: Page, row: int, column: int) -> np.ndarray:
    centers = (page.boxes[:, :2] + page.boxes[:, 2:]) / 2
    return (centers // 64 == (column, row)).all(axis=1)


def test_characters_at_an_edge_may_belong_to_both_sides(materials: Materials) -> None:
    page = draw_page(2, materials, STYLE)
    texts, around, exact = token_texts(page), bordering_texts(page, 3.0), bordering_texts(page, 0.0)
    for row in range(4):
        for column in range(8):
            characters, own = around[row][column]
            assert exact[row][column][0] == texts[row][column]
            assert len(texts[row][column]) <= len(characters) and sum(own) <= len(texts[row][column])
    assert sum(len(text) for row in around for text, _ in row) > len(page.characters)


def test_regions_are_those_at_the_middle_of_tokens() -> None:
    page = draw_empty()
    page.regions = [("table", (0, 0, 64, 128)), ("figure", (64, 64, 128, 128))]
    kinds = [[REGIONS[index] for index in row] for row in region_kinds(page)]
    assert kinds == [["table", "blank"], ["table", "figure"]]


def draw_empty() -> Page:
    nothing = np.zeros(0, dtype=np.int64)
    return Page(Image.new("RGB", (128, 128)), nothing, np.zeros((0, 4), np.float32), nothing)


def test_a_page_without_text_has_empty_slots() -> None:
    slots = character_slots(draw_empty())
    assert slots.shape == (2, 2, CELLS, CELLS, SLOTS) and not slots.any()
    assert token_texts(draw_empty()) == [[[], []], [[], []]]
