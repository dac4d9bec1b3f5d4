"""Folders written by `save_to_disk`."""

from pathlib import Path

import datasets
import pytest

from deepencoder.extraction.listing import list_pages

from ..corpus import encoded, picture, same


def test_rows_and_splits_are_listed(tmp_path: Path) -> None:
    images = [{"bytes": encoded(number), "path": None} for number in range(3)]
    features = datasets.Features({"page": datasets.Image(), "name": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"page": images, "name": ["a", "b", "c"]}, features=features)
    data.save_to_disk(tmp_path / "one")
    pages = list(list_pages([tmp_path / "one"]))
    assert len(pages) == 3 and same(pages[2], picture(2))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="split must be one of train, test"):
        list(list_pages([tmp_path / "two"]))
    (page,) = list_pages([tmp_path / "two"], split="test")
    assert same(page, picture(1))
