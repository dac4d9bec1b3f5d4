import numpy as np
import pytest

from deepencoder import render_text


def ink(image: object) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)[..., 0] < 128


def test_a_text_is_printed_on_pages() -> None:
    text = "\n".join(f"Line {number} of the text, which goes on and on." for number in range(60))
    pages = render_text(text, size=(320, 480), font_size=16, margin=20)
    assert len(pages) > 2 and {page.image.size for page in pages} == {(480, 320)}
    assert "\n".join(page.text for page in pages) == text
    for page in pages:
        marked = ink(page.image)
        assert marked.any() and not marked[:18].any() and not marked[:, :18].any() and not marked[-16:].any()
        # There is a line of print for each line of text.
        rows = np.flatnonzero(np.diff(marked.any(axis=1).astype(int)) == 1)
        assert len(rows) == len(page.text.splitlines())


def test_lines_are_broken_at_spaces_and_long_words_anywhere() -> None:
    (page,) = render_text("some words and then " + "w" * 60 + " end", size=(320, 200), font_size=16)
    lines = page.text.splitlines()
    assert len(lines) > 3 and "".join(lines).replace(" ", "") == "somewordsandthen" + "w" * 60 + "end"
    assert not ink(page.image)[:, -14:].any()


def test_larger_print_needs_more_pages() -> None:
    text = "word " * 400
    counts = [len(render_text(text, font_size=size)) for size in (10, 20, 40)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_nothing_is_a_white_page() -> None:
    (page,) = render_text("")
    assert page.text == "" and not ink(page.image).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (0, 640)}, "size"),
        ({"size": (640, 10**6)}, "size"),
        ({"font_size": 0}, "font_size"),
        ({"font_size": 700}, "no room"),
        ({"margin": 400}, "no room"),
        ({"line_spacing": 0.0}, "line_spacing"),
        ({"font": "nothing.ttf"}, "nothing.ttf"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render_text("text", **options)  # type: ignore[arg-type]


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="too much"):
        render_text("a\n" * 100_000, size=(8192, 8192), font_size=1000)
