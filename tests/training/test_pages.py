import numpy as np

from deepencoder.reading.alphabet import ALPHABET
from training.materials import Materials
from training.pages import PageStyle, draw_page

from .conftest import SENTENCES

PLAIN = PageStyle(384, 256, (20, 24), cut=False, varied=False)


def test_a_page_follows_from_its_seed(materials: Materials) -> None:
    one, same, other = (draw_page(seed, materials, PLAIN) for seed in (1, 1, 2))
    assert one.image.tobytes() == same.image.tobytes() != other.image.tobytes()
    assert (one.boxes == same.boxes).all()


def test_boxes_hold_the_ink(materials: Materials) -> None:
    for seed in range(5):
        page = draw_page(seed, materials, PLAIN)
        gray = np.asarray(page.image.convert("L"), dtype=np.float32)
        ink = np.abs(gray - gray[0, 0]) > 60
        assert ink.any()
        covered = np.zeros_like(ink)
        for character, box in zip(page.characters, page.boxes, strict=True):
            left, top, right, bottom = box.round().astype(int)
            part = ink[max(top, 0) : bottom, max(left, 0) : right]
            if ALPHABET[character] == " ":  # Letters beside it may lean over by a pixel.
                assert not part[:, 1:-1].any(), (seed, box)
            elif bottom <= 256:
                assert part.any(), (seed, ALPHABET[character], box)
            covered[max(top - 2, 0) : bottom + 2, max(left - 1, 0) : right + 1] = True
        assert (ink & ~covered).sum() < 0.01 * ink.sum()


def test_characters_are_the_text_in_reading_order(materials: Materials) -> None:
    page = draw_page(3, materials, PLAIN)
    lines = [page.characters[page.lines == line] for line in np.unique(page.lines)]
    text = " ".join("".join(ALPHABET[character] for character in line) for line in lines)
    assert any(sentence[:40] in text for sentence in SENTENCES), text


def test_a_text_can_be_set_in_two_ways(materials: Materials) -> None:
    style = PageStyle(512, 512, (14, 30), cut=False)
    one, other = (draw_page(seed, materials, style, text_seed=7) for seed in (1, 2))
    assert one.image.tobytes() != other.image.tobytes()
    words = [set("".join(ALPHABET[c] for c in page.characters).split()) for page in (one, other)]
    assert len(words[0] & words[1]) > 0.3 * min(map(len, words))


def test_varied_pages_have_regions_inside_the_page(materials: Materials) -> None:
    style = PageStyle(512, 512, (12, 20))
    pages = [draw_page(seed, materials, style) for seed in range(12)]
    kinds = {kind for page in pages for kind, _ in page.regions}
    assert kinds >= {"text", "heading", "table", "figure", "code"}
    for page in pages:
        centers = (page.boxes[:, :2] + page.boxes[:, 2:]) / 2
        assert (centers >= 0).all() and (centers < 512).all()
