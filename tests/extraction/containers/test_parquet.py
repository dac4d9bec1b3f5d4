"""The rows of parquet files."""

from pathlib import Path

import pyarrow.parquet
import pytest

from deepencoder.extraction.listing import NoImagesError, list_pages
from deepencoder.extraction.pages import PageError, load_page

from ..corpus import picture, same, write_parquet


def test_rows_are_listed_and_only_wanted_ones_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 5)
    pages = list(list_pages([path]))
    assert [page.page for page in pages] == [0, 1, 2, 3, 4] and same(pages[4], picture(4))
    (page,) = list_pages([path], wanted=lambda index, source, number: number == 3)
    assert same(page, picture(3)) and page.index == 3
    with pytest.raises(ValueError, match="column must be one of name, image.*'nothing'"):
        list(list_pages([path], column="nothing"))


def test_a_table_without_images_fails_alone(tmp_path: Path) -> None:
    """A table in a folder becomes a failed page; a table that is itself a source raises."""
    (tmp_path / "folder").mkdir()
    write_parquet(tmp_path / "folder" / "b.parquet", 1)
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["x"]}), tmp_path / "folder" / "a.parquet")
    failed, page = list_pages([tmp_path / "folder"])
    assert "no image column" in failed.error and same(page, picture(0))
    with pytest.raises(NoImagesError, match="no image column"):
        list(list_pages([tmp_path / "folder" / "a.parquet"]))


def test_rows_of_text_are_failed_pages(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 5)
    with pytest.raises(PageError, match="no image"):
        load_page(next(list_pages([path], column="name")))
