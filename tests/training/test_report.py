from pathlib import Path

import pytest
from PIL import Image

from training.plot import plot_log
from training.report import PARTS, plot_reading, replace_parts

ROW = {"characters in a token": 5.0, "accuracy": 0.9512, "without edges": 1.0, "example": ["a", "a"]}
RESULTS = {
    "reading": {source: {"by size of print": {"24": ROW}} for source in ("held-out pages", "PDFs")},
    "baselines": {"mean-pooled embeddings": {"3": 0.9}, "truncated text": {"3": 1.0}},
    "finding": [
        {"query": query, "model": "page reader", "by": "pooled vector", "recall": [0.5, 0.75]}
        for query in ("copy", "photo")
    ],
    "precision": [{"form": "float32", "reading, 24 px": 0.9, "copy": 1.0}],
}


def test_tables_are_written_between_their_marks() -> None:
    page = "".join(f"Before.\n<!-- {name} -->\nold\n<!-- end of {name} -->\nAfter.\n" for name in PARTS)
    text = replace_parts(page, RESULTS)
    assert "old" not in text and text.count("Before.") == text.count("After.") == len(PARTS)
    assert "| 24 px | 5.0 | 95.1 % | 100 % | 5.0 | 95.1 % | 100 % |" in text
    assert "| mean-pooled embeddings | 90.0 % |" in text
    assert "| page reader | pooled vector | 50.0 %, 75.0 % | 50.0 %, 75.0 % |" in text
    assert "| float32 | 90.0 % | 100 % |" in text
    assert replace_parts(text, RESULTS) == text
    assert replace_parts(page, {}) == page


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_reading(RESULTS, tmp_path / "read.png")
    (tmp_path / "log.jsonl").write_text(
        '{"step": 50, "tokens": 1.5, "patches": 1.0}\n'
        '{"step": 100, "held_out": {"24": [8.0, 0.5, 0.6], "example_24": []}}\n'
    )
    for path in (tmp_path / "read.png", plot_log(tmp_path)):
        with Image.open(path) as picture:
            assert min(picture.size) > 300
