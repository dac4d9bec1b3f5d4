"""The model that ships with the package reads, and finds pages again.

Unusual: pages are printed by Pillow, in a font that is not among those of the training. Margins allow for other
versions of Pillow and other processors.
"""

from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel

import deepencoder
from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor, PageReader, render_text

TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it "
    "was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair."
)
OTHERS = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and "
    "nothing particular to interest me on shore, I thought I would sail about a little.",
    "Happy families are all alike; every unhappy family is unhappy in its own way. Everything was in confusion in the "
    "Oblonskys' house.",
    "Whether I shall turn out to be the hero of my own life, or whether that station will be held by anybody else, "
    "these pages must show.",
)


@pytest.fixture(scope="module")
def reader() -> PageReader:
    return PageReader.from_pretrained(deepencoder.page_reader())


def similarity(read: str, truth: str) -> float:
    return SequenceMatcher(None, " ".join(read.split()), " ".join(truth.split()), autojunk=False).ratio()


def test_the_files_are_what_they_should_be() -> None:
    folder = Path(deepencoder.page_reader())
    assert (folder / "model.safetensors").stat().st_size < 12e6
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, DeepEncoder) and model.dtype == torch.float32
    assert 3e6 < model.num_parameters() < 8e6
    assert model.config.sam_config.global_attn_indexes and model.config.sam_config.window_size
    assert isinstance(AutoImageProcessor.from_pretrained(folder), DeepEncoderImageProcessor)


@pytest.mark.parametrize("font_size", [24, 32])
def test_it_reads_print(reader: PageReader, font_size: int) -> None:
    (page,) = render_text(TEXT, font_size=font_size)
    (read,) = reader.read(page.image)
    assert similarity(read.text, page.text) > 0.85, read.text
    assert len(read.text.splitlines()) == pytest.approx(len(page.text.splitlines()), abs=2)


def test_tokens_say_where_the_text_is(reader: PageReader) -> None:
    image = Image.new("RGB", (640, 640), "white")
    (word,) = render_text("Lantern", size=(64, 192), font_size=32, margin=12)
    image.paste(word.image, (320, 128))
    (read,) = reader.read(image)
    boxes = read.layout.boxes
    found = {index for index, text in enumerate(read.tokens) if text}
    inside = {
        index
        for index in range(len(boxes))
        if 256 < boxes[index, 2] and boxes[index, 0] < 512 and 64 < boxes[index, 3] and boxes[index, 1] < 192
    }
    assert found and found <= inside
    assert similarity("".join(read.tokens), "Lantern") > 0.7


def test_pages_with_tiles_and_batches(reader: PageReader) -> None:
    (large,) = render_text(TEXT, size=(1000, 700), font_size=24)
    (small,) = render_text(TEXT, font_size=32)
    texts = reader.read([large.image, small.image, large.image], batch_size=2)
    assert texts[0].layout.mosaic_index.size and not texts[1].layout.mosaic_index.size
    assert similarity(texts[0].text, large.text) > 0.85 and similarity(texts[1].text, small.text) > 0.85
    assert texts[2].text == texts[0].text
    assert [len(text.tokens) for text in texts] == [len(text.layout) for text in texts]


def test_damaged_pages_are_found(reader: PageReader) -> None:
    """Late interaction of vision tokens finds the page that a blurred, noisy and darkened copy shows."""
    pages = [render_text(text, font_size=24)[0].image for text in (TEXT, *OTHERS)]
    noise = np.random.default_rng(0)
    copies = []
    for page in pages:
        pixels = np.asarray(page.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32) * 0.8
        copies.append(Image.fromarray((pixels + noise.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)))
    with torch.no_grad():
        encoded = [
            torch.stack(reader.encoder(**reader.processor(images, return_tensors="pt")).vision_tokens)
            for images in (pages, copies)
        ]
    mean = encoded[0].mean((0, 1))
    words, queries = (normalize(tokens - mean, dim=-1) for tokens in encoded)
    scores = torch.einsum("qtd,pud->qptu", queries, words).amax(-1).mean(-1)
    own, best_other = scores.diagonal(), scores.masked_fill(torch.eye(4, dtype=torch.bool), -1).amax(1)
    assert (own > best_other + 0.02).all(), scores


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no reading head"):
        PageReader.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="batch_size"):
        PageReader.from_pretrained(deepencoder.page_reader()).read("examples/table.png", batch_size=0)
