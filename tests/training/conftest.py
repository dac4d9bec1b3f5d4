"""A small set of materials: Pillow's built-in font and a few sentences."""

import gzip
import json
from pathlib import Path

import pytest
from PIL import ImageFont

from training.materials import Materials

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "Pack my box with five dozen liquor jugs; then send 1,234 of them home!",
    "How vexingly quick daft zebras jump (and how rarely they are seen).",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("materials")
    font = ImageFont.load_default(24)
    assert isinstance(font, ImageFont.FreeTypeFont)
    kinds = ("paragraph", "heading", "item", "code")
    lines = [json.dumps([kinds[n % 4], sentence]) for n, sentence in enumerate(SENTENCES * 20)]
    for split in ("train", "test"):
        (folder / "fonts" / split).mkdir(parents=True)
        (folder / "fonts" / split / "builtin-mono.ttf").write_bytes(font.font_bytes)
        (folder / "texts" / split).mkdir(parents=True)
        (folder / "texts" / split / "sentences.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@pytest.fixture(scope="session")
def materials(folder: Path) -> Materials:
    return Materials(folder)
