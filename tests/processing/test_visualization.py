"""Pictures of what the encoder sees."""

import numpy as np
import pytest
import torch
from PIL import Image

from deepencoder import DeepEncoderImageProcessor, draw_heat_map, draw_similarity
from deepencoder.processing.visualization import (
    PADDING,
    TILE_LINE,
    draw_encoding,
    features_to_colors,
    find_salient_token,
    stitch_tiles,
)

LIGHTNESS = np.array([0.299, 0.587, 0.114])


def test_tiles_are_stitched_row_major() -> None:
    tiles = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 3, 1)
    mosaic = stitch_tiles(tiles, (3, 2))
    assert mosaic.shape == (4, 9, 1)
    assert mosaic[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert mosaic[3, :, 0].tolist() == [3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_colours_follow_the_features() -> None:
    direction = torch.randn(16)
    grid = torch.linspace(-1, 1, 12)[:, None] * direction
    (colors,) = features_to_colors([grid.view(3, 4, 16)])
    assert colors.shape == (3, 4, 3) and colors.dtype == np.uint8
    first = colors[..., 0].ravel().astype(int)
    assert (np.diff(first) >= 0).all() or (np.diff(first) <= 0).all()
    assert abs(int(first[0]) - int(first[-1])) > 200
    same, again = features_to_colors([grid.view(3, 4, 16), grid.view(3, 4, 16)])
    assert np.array_equal(same, again)


def test_features_that_say_nothing_are_grey() -> None:
    for shape in ((2, 2, 8), (1, 1, 8)):
        (colors,) = features_to_colors([torch.ones(shape)])
        assert (np.abs(colors.astype(int) - 128) <= 1).all()


def test_panels_stand_side_by_side() -> None:
    view = Image.new("RGB", (64, 64), (10, 20, 30))
    alone = draw_encoding(view, torch.randn(4, 4, 8), height=64)
    assert alone.size == (64 * 2 + 16, 64)
    mosaic = Image.new("RGB", (128, 64))
    both = draw_encoding(view, torch.randn(4, 4, 8), mosaic, torch.randn(2, 4, 8), (2, 1), height=64)
    assert both.size == (64 * 2 + 128 * 2 + 16 * 3, 64)
    assert TILE_LINE in {color for _, color in both.getcolors(10**6)}


def test_padding_has_no_part_in_the_colours() -> None:
    features, padding = torch.randn(4, 6, 16), np.zeros((4, 6), bool)
    padding[:, [0, 5]] = True
    (alone,) = features_to_colors([features[:, 1:5]])
    features[:, [0, 5]] = 1e4
    view, tiles = features_to_colors([features, features[:2, 1:5]], [padding, None])
    assert (view[padding] == PADDING).all() and tiles.shape == (2, 4, 3)
    assert np.array_equal(view[:2, 1:5], tiles)
    (again,) = features_to_colors([features], [padding])
    assert np.array_equal(again[:, 1:5], alone)
    (nothing,) = features_to_colors([features], [np.ones((4, 6), bool)])
    assert (nothing == PADDING).all()
    drawn = draw_encoding(Image.new("RGB", (60, 40)), features, height=40, view_padding=padding)
    assert drawn.getpixel((60 + 16 + 2, 20)) == PADDING != drawn.getpixel((60 + 16 + 30, 20))
    with pytest.raises(ValueError, match=r"padding.*\(4, 6\).*\(6, 4\)"):
        features_to_colors([features], [padding.T])


def lightness(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(float) @ LIGHTNESS


def test_similarity_of_a_grid() -> None:
    """The angle to the first token grows along the grid, so the heat falls from the left to the right."""
    angles = torch.linspace(0, 3, 8)
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1).expand(3, 8, 2) * torch.rand(3, 8, 1).add(1)
    picture = draw_similarity(Image.new("L", (160, 60), 200), tokens, 8)
    assert picture.size == (160, 60) and picture.mode == "RGB"
    middle = lightness(picture)[30, 25:]
    assert (np.diff(middle) <= 0.6).all() and middle[0] - middle[-1] > 80
    outline = (np.asarray(picture) == TILE_LINE).all(axis=-1)
    assert np.argwhere(outline).min(axis=0).tolist() == [20, 0]
    assert np.argwhere(outline).max(axis=0).tolist() == [39, 19]


@pytest.mark.parametrize("kind", ["view", "tile"])
def test_similarity_with_a_layout(kind: str) -> None:
    """Two halves of a page, each alike; what padding and newlines hold changes nothing."""
    processor = DeepEncoderImageProcessor(mode="gundam")
    layout = processor.get_token_layout(1000, 2000)
    tokens = torch.zeros(len(layout), 4)
    left = torch.from_numpy(layout.boxes[:, 2] <= 1000)
    tokens[left, 0] = 1
    tokens[~left, 1] = 1
    tokens[layout.is_padding] = torch.tensor([0, -9.0, 0, 0])
    index, page = layout.find_token(1900, 900, kind), Image.new("RGB", (400, 200), (255, 255, 255))
    picture = draw_similarity(page, tokens, index, layout)
    assert picture.size == (400, 200)
    heat = lightness(picture)
    assert heat[100, 20] == heat[20, 150] < heat[20, 250] == heat[100, 300]
    tokens[layout.is_padding] = 7.0
    tokens[layout.kind == "newline"] = 7.0
    assert np.array_equal(np.asarray(draw_similarity(page, tokens, index, layout)), np.asarray(picture))
    box = layout.boxes[index] / 5
    outline = np.argwhere((np.asarray(picture) == TILE_LINE).all(axis=-1))
    assert np.abs(outline.min(axis=0) - box[[1, 0]]).max() <= 1
    assert np.abs(outline.max(axis=0) + 1 - box[[3, 2]]).max() <= 1


def test_a_heat_map_is_light_where_the_values_are_high() -> None:
    processor = DeepEncoderImageProcessor(mode="base")
    layout = processor.get_token_layout(500, 1000)
    values = torch.full((16, 16), -1e6)  # What padding holds changes nothing.
    values[4:12] = torch.linspace(0, 1, 16)
    page = Image.new("RGB", (400, 200), (255, 255, 255))
    picture = draw_heat_map(page, values.bfloat16().requires_grad_(), layout)
    middle = lightness(picture)[100]
    assert picture.size == (400, 200) and (np.diff(middle) >= -0.6).all() and middle[-1] - middle[0] > 80
    mosaic = processor.get_token_layout(500, 1000, mode="gundam")
    tiles = draw_heat_map(page, np.ones(mosaic.mosaic_index.shape), mosaic, kind="tile")
    assert len(tiles.getcolors()) == 1  # Equal values have one colour.
    with pytest.raises(ValueError, match="values must have the shape"):
        draw_heat_map(page, values[1:], layout)
    with pytest.raises(ValueError, match="1000 x 500 pixels.* 200 x 400"):
        draw_heat_map(page.transpose(Image.Transpose.TRANSPOSE), values, layout)


def test_values_of_patches_have_a_layout_of_their_own() -> None:
    layout = DeepEncoderImageProcessor().get_token_layout(500, 1000, downsample_ratio=1)
    assert layout.view_index.shape == (64, 64)
    assert layout.boxes[layout.view_index[16, 3]] == pytest.approx([46.875, 0, 62.5, 15.625])


def test_print_below_the_grid_stays_legible() -> None:
    drawn = draw_encoding(Image.new("RGB", (64, 64)), torch.randn(4, 4, 8), height=64)
    assert max(drawn.getpixel((16, 8))) < 100  # on a line of the grid, over black print


def test_a_salient_token_is_one_that_differs() -> None:
    for size, mode in (((300, 100), "base"), ((900, 700), "gundam")):
        layout = DeepEncoderImageProcessor(mode=mode).get_token_layout(*size)
        tokens = torch.ones(len(layout), 4)
        tokens[layout.is_padding] = -1.0
        odd = layout.find_token(60, 200, "tile" if mode == "gundam" else "view")
        tokens[odd] = torch.tensor([1.0, -1, 1, -1])
        assert find_salient_token(tokens, layout) == odd
    vanished = DeepEncoderImageProcessor().get_token_layout(1, 5000)
    assert find_salient_token(torch.ones(len(vanished), 4), vanished) is None


def test_mistakes_of_a_similarity() -> None:
    page, layout = Image.new("RGB", (100, 300)), DeepEncoderImageProcessor().get_token_layout(300, 100)
    tokens = torch.ones(273, 4)
    for index, words in ((16, "newline"), (272, "separator"), (0, "padding"), (273, "less than 273"), (-1, "-1")):
        with pytest.raises(ValueError, match=f"index.*{words}"):
            draw_similarity(page, tokens, index, layout)
    with pytest.raises(ValueError, match=r"tokens.*\(273, dim\).*\(256, 4\)"):
        draw_similarity(page, tokens[:256], 100, layout)
    with pytest.raises(ValueError, match=r"tokens.*\(h, w, dim\).*\(273, 4\)"):
        draw_similarity(page, tokens, 100)
    with pytest.raises(ValueError, match="index.*less than 6"):
        draw_similarity(page, tokens[:6].reshape(2, 3, 4), 6)
