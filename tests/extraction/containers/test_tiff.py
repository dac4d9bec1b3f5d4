"""The frames of TIFFs."""

from pathlib import Path

import pytest

from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import PageError, load_page

from ..corpus import picture, same, write_tiff


@pytest.mark.parametrize("big", [False, True])
def test_missing_frames_of_a_cut_tiff_are_reported(tmp_path: Path, big: bool) -> None:
    first, *others = (picture(number, (64, 96)) for number in range(5))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, big_tiff=big)
    content = (tmp_path / "a.tif").read_bytes()
    assert len(list(list_pages([tmp_path]))) == 5
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    first_page, second_page, *cut = list_pages([tmp_path])
    assert same(first_page, picture(0, (64, 96))) and same(second_page, picture(1, (64, 96))) and cut
    for page in cut:
        with pytest.raises(PageError):
            load_page(page)


def test_a_tiff_of_too_many_frames_is_cut(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", 5)
    assert len(list(list_pages([path], max_pages=5))) == 5
    *pages, last = list_pages([path], max_pages=3)
    assert [page.page for page in pages] == [0, 1, 2] and last.page == 3 and "the limit is 3 pages" in last.error
