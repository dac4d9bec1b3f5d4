"""Where a page lies on its views, against Pillow."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from deepencoder import DeepEncoderImageProcessor
from deepencoder.processing.placement import MAX_SIDE, PageGeometry, Placement, contain_page
from deepencoder.processing.views import make_global_views

SIDE = st.integers(1, 3000)


@settings(max_examples=300, deadline=None)
@given(page=st.tuples(SIDE, SIDE), view=st.tuples(st.integers(1, 200), st.integers(1, 200)))
@example(page=(1, 5000), view=(64, 64))
@example(page=(5000, 1), view=(64, 64))
@example(page=(3, 2), view=(96, 64))
def test_a_page_is_contained_as_by_pillow(page: tuple[int, int], view: tuple[int, int]) -> None:
    place = contain_page(page, view)
    if place.width and place.height:
        expected = ImageOps.contain(Image.new("1", page[::-1]), view[::-1], Image.Resampling.NEAREST).size
        assert (place.width, place.height) == expected
    else:  # Older versions of Pillow refuse a page of which nothing is left.
        assert min(page[0] * view[1] / page[1], page[1] * view[0] / page[0]) <= 0.5 + 1e-9
    for start, inner, outer in ((place.left, place.width, view[1]), (place.top, place.height, view[0])):
        assert 0 <= start <= start + inner <= outer and abs(outer - inner - 2 * start) <= 1


@pytest.mark.parametrize("view", [(9, 9), (8, 9), (9, 8), (8, 8), (7, 12)])
def test_a_page_is_centred_as_by_pillow(view: tuple[int, int]) -> None:
    """`ImageOps.pad` rounds half a pixel to the even number; a white page on black shows where it is."""
    for height in range(1, 12):
        for width in range(1, 12):
            padded = ImageOps.pad(Image.new("L", (width, height), 255), view[::-1], color=0)
            place = contain_page((height, width), view)
            box = (place.left, place.top, place.left + place.width, place.top + place.height)
            assert padded.getbbox() == box, (height, width)


def test_a_page_of_which_nothing_is_left_is_a_view_of_padding() -> None:
    views = make_global_views([Image.new("RGB", (5000, 1))], (64, 64), Image.Resampling.BICUBIC, (1, 2, 3), None)
    assert (views == [[[1]], [[2]], [[3]]]).all()
    assert contain_page((1, 5000), (64, 64)) == Placement(0, 32, 64, 0)


def test_grids_and_counts() -> None:
    fields = DeepEncoderImageProcessor(mode="gundam")._fields(None, {})
    geometry = PageGeometry.from_fields(1754, 1240, fields)
    assert geometry.tile_grid == (2, 3) and geometry.num_tiles == 6
    assert geometry.view_tokens == (16, 16) and geometry.tile_tokens == 10 and geometry.num_tokens == 903
    assert geometry.placement == Placement(150, 0, 724, 1024)
    small = PageGeometry.from_fields(600, 600, fields)
    assert small.tile_grid == (1, 1) and small.num_tiles == 0 and small.num_tokens == 273


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5.0, 5), ("5", 5), (None, 5), (MAX_SIDE + 1, 1), (1, 10**400)])
def test_sizes_that_no_page_has(size: tuple[int, int]) -> None:
    processor = DeepEncoderImageProcessor()
    for ask in (processor.get_tile_grid, processor.get_number_of_image_tokens, processor.get_token_layout):
        with pytest.raises(ValueError, match="height and width must be positive integers") as error:
            ask(*size, mode="gundam")
        assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="height and width"):
        processor.get_token_mask([(9, 9), size])
