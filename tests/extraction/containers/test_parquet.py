"""The rows of parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from deepencoder.extraction.containers.parquet import list_parquet
from deepencoder.extraction.listing import NoImagesError, list_pages
from deepencoder.extraction.pages import FailedPage, ImagePage, PageError, load_page

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


def test_rows_take_memory_one_at_a_time(tmp_path: Path) -> None:
    """A row group of a small file may hold gigabytes."""
    images = pyarrow.array([bytes(100_000)] * 2000).dictionary_encode()
    for name, column in (("plain", images), ("struct", pyarrow.StructArray.from_arrays([images], ["bytes"]))):
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(
            pyarrow.table({"image": column}), path, compression="zstd", store_schema=False, row_group_size=2000
        )
        assert path.stat().st_size < 20_000
        pool = pyarrow.default_memory_pool()
        before, peak, rows = pyarrow.total_allocated_bytes(), 0, 0
        for page in list_pages([path]):
            assert isinstance(page, ImagePage) and len(page.data or b"") == 100_000
            rows, peak = rows + 1, max(peak, pyarrow.total_allocated_bytes() - before)
        print(f"{name}: {peak:,} bytes at once, in {pool.backend_name}")
        assert rows == 2000 and peak < 5_000_000


def test_a_row_group_that_cannot_be_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows before the damage are read, and those after it fail, but only so many of them are listed."""
    path = write_parquet(tmp_path / "a.parquet", 40, row_group_size=30)
    read = pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(self: Any, size: int, row_groups: list[int], columns: list[str]) -> Iterator[Any]:
        batches = read(self, size, row_groups=row_groups, columns=columns)
        if row_groups == [1]:
            yield from batches
            return
        for _ in range(3):
            yield next(batches)
        raise OSError("damaged")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    pages = list(list_pages([path]))
    assert [page.page for page in pages] == list(range(40))
    failed = [page for page in pages if isinstance(page, FailedPage)]
    assert [page.page for page in failed] == list(range(3, 30))
    assert {page.error for page in failed} == {"the parquet file cannot be read: damaged"}
    pages = [page.at(0) for page in list_parquet(str(path), None, max_broken_rows=5)]
    assert [page.page for page in pages] == [*range(10), *range(30, 40)]
    assert isinstance(pages[9], FailedPage) and "too many" in pages[9].error
