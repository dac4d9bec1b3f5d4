"""The example that compresses a text to vision tokens, and the picture of the README."""

import random
import sys
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from PIL import Image

from .programs import load_example


def test_edit_distance_is_that_of_the_textbook() -> None:
    example, letters = load_example("compress_text"), random.Random(0)
    assert example.edit_distance("kitten", "sitting") == 3
    for _ in range(50):
        one, other = ("".join(letters.choices("ab ", k=letters.randrange(9))) for _ in range(2))
        table = [
            [row + column if not row * column else 0 for column in range(len(other) + 1)]
            for row in range(len(one) + 1)
        ]
        for row in range(1, len(one) + 1):
            for column in range(1, len(other) + 1):
                replaced = table[row - 1][column - 1] + (one[row - 1] != other[column - 1])
                table[row][column] = min(table[row - 1][column] + 1, table[row][column - 1] + 1, replaced)
        assert example.edit_distance(one, other) == table[-1][-1]


def test_a_text_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "The sun was shining on the sea, shining with all his might. He did his very best to make the billows bright."
    )
    (tmp_path / "text.txt").write_text(text)
    monkeypatch.setattr(sys, "argv", ["compress_text.py", str(tmp_path / "text.txt"), "--font-size", "28"])
    load_example("compress_text").main()
    table, _, read = capsys.readouterr().out.partition("\n\n")
    size, _, pages, characters, tokens, ratio, right = table.splitlines()[1].split()
    assert (size, pages, characters) == ("28", "1", str(len(text)))
    assert float(ratio) == pytest.approx(int(characters) / int(tokens), abs=0.06) and float(right.rstrip("%")) > 80
    assert SequenceMatcher(None, " ".join(read.split()), text).ratio() > 0.8


def test_the_picture_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["draw_reading.py", "--output", str(tmp_path / "picture.png")])
    load_example("draw_reading").main()
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.height == 760 and picture.width > 3 * 500
