"""Which column of a table and which split of a dataset are read."""

import pytest

from deepencoder.extraction.containers.columns import NoImagesError, choose_column, choose_split


def test_the_only_image_column_is_the_default() -> None:
    assert choose_column(None, ["image"], ["name", "image"], "table") == "image"
    assert choose_column("name", ["image"], ["name", "image"], "table") == "name"
    with pytest.raises(NoImagesError, match="column must be one of name, image in 'table', got 'page'"):
        choose_column("page", ["image"], ["name", "image"], "table")
    with pytest.raises(NoImagesError, match="'table' has no image column"):
        choose_column(None, [], ["name"], "table")
    with pytest.raises(ValueError, match="'table' has several image columns: front, back") as caught:
        choose_column(None, ["front", "back"], ["front", "back"], "table")
    assert not isinstance(caught.value, NoImagesError)  # it is raised even for a table in a folder


def test_the_only_split_is_the_default() -> None:
    assert choose_split(None, ["train"], "data") == "train"
    assert choose_split("test", ["train", "test"], "data") == "test"
    for wanted in (None, "other"):
        with pytest.raises(ValueError, match="split must be one of train, test of 'data'"):
            choose_split(wanted, ["train", "test"], "data")
