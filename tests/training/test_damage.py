import numpy as np

from training.damage import _rotate, damage_page, photograph_page
from training.materials import Materials
from training.pages import Page, PageStyle, draw_page


def ink_share(page: Page) -> float:
    """Return the share of the ink that lies in the boxes."""
    gray = np.asarray(page.image.convert("L"), dtype=np.float32)
    ink = np.abs(gray - np.median(gray)) > 60
    covered = np.zeros_like(ink)
    for left, top, right, bottom in page.boxes.round().astype(int):
        covered[max(top, 0) : bottom, max(left, 0) : right] = True
    return float((ink & covered).sum() / ink.sum())


def test_boxes_turn_with_the_page(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(512, 512, (20, 24), cut=False, varied=False))
    still, turned = ink_share(page), _rotate(page, 3.0)
    assert still > 0.97
    assert ink_share(turned) > 0.9
    assert ink_share(Page(turned.image, page.characters, page.boxes, page.lines)) < 0.85


def test_damage_follows_from_its_seed_and_strength(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(256, 256, cut=False))
    copies = [damage_page(page, seed) for seed in (3, 3, 4)]
    assert copies[0].image.tobytes() == copies[1].image.tobytes()
    assert len({copy.image.tobytes() for copy in copies} | {page.image.tobytes()}) == 3
    assert damage_page(page, 3, strength=0.0).image.tobytes() == page.image.tobytes()


def test_boxes_move_with_a_photograph(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(512, 512, (20, 24), cut=False, varied=False))
    moved = photograph_page(page, 3)
    # The edges of the table and of the paper are no ink, so only darkness inside the print is compared.
    shares = []
    for boxes in (moved.boxes, page.boxes[: len(moved.boxes)]):
        inside = np.zeros((512, 512), dtype=bool)
        for left, top, right, bottom in boxes.round().astype(int):
            inside[max(top, 0) : bottom, max(left, 0) : right] = True
        gray = np.asarray(moved.image.convert("L"), dtype=np.float32)
        shares.append(gray[inside].mean())
    assert shares[0] < shares[1] - 3
    again, other = (photograph_page(page, seed).image.tobytes() for seed in (3, 4))
    assert again == moved.image.tobytes() != other
