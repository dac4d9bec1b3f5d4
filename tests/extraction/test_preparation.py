"""Preparation: pages become views in bytes, with exactly the image processor's pixels."""

import pickle
from pathlib import Path

import numpy as np
import torch

from deepencoder.extraction import PageError, list_pages
from deepencoder.extraction.pages import ImagePage
from deepencoder.extraction.preparation import PageLoader, PreparedImage, not_prepared, prepare_image

from .corpus import encoded, picture, write_bad_pages
from .helpers import load_once


def test_workers_send_the_processors_pixels(tiled: Path) -> None:
    _, processor = load_once(tiled)
    image = prepare_image(picture(0, (150, 100)), processor)
    expected = processor(picture(0, (150, 100)), return_tensors="pt")
    assert image.view.dtype == np.uint8 and image.tiles is not None
    for ours, theirs in ((image.view[None], "pixel_values"), (image.tiles, "pixel_values_local")):
        assert torch.equal(processor.normalize_pixels(torch.from_numpy(ours)), expected[theirs])


def test_tokens_are_counted_as_the_processor_does(fixed: Path, tiled: Path) -> None:
    for folder in (fixed, tiled):
        model, processor = load_once(folder)
        for size in ((60, 140), (160, 100), (30, 30)):
            prepared = prepare_image(picture(0, size), processor)
            expected = processor.get_number_of_image_tokens(size[1], size[0])
            assert prepared.count_tokens(model.config) == expected
            assert prepared.num_tiles == len(prepared.tiles if prepared.tiles is not None else [])


def test_a_page_that_cannot_be_used_gives_its_reason(fixed: Path, tmp_path: Path) -> None:
    loader = pickle.loads(pickle.dumps(PageLoader(load_once(fixed)[1])))
    bad = write_bad_pages(tmp_path)
    for page in list_pages([tmp_path]):
        same, error = pickle.loads(pickle.dumps(loader(page)))
        assert same == page and isinstance(error, PageError) and str(error)
        assert bad[Path(page.source).name] in str(error)
        assert error.__traceback__ is None, "it keeps the pixels of the page in memory"
    page, prepared = loader(ImagePage("a", data=encoded(0)))
    assert page == ImagePage("a") and isinstance(prepared, PreparedImage)
    page, error = not_prepared(ImagePage("a", data=encoded(0)), "it took too long")
    assert page == ImagePage("a") and str(error) == "decoding it failed: it took too long"
