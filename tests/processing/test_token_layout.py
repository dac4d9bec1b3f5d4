"""Where each token lies: marks that are painted on pages are found in the views that the image processor makes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor, TokenLayout
from deepencoder.processing.modes import modes_of

RAW = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
NEAREST, BICUBIC = int(Image.Resampling.NEAREST), int(Image.Resampling.BICUBIC)
SIZES = [(1754, 1240), (999, 1501), (37, 91), (300, 1500), (1500, 300), (640, 640), (1, 300)]
ODD = {  # Views and tiles whose sides are no multiples of 64.
    "odd-view": {"size": {"height": 1040, "width": 720}},
    "odd-tiles": {"size": {"height": 208, "width": 336}, "crop_to_patches": True, "tile_size": 176, "max_patches": 7},
    "squashed-tiles": {"mode": "small", "crop_to_patches": True, "tile_size": 144, "max_patches": 5},
    "own-size": {"do_resize": False},
}
PROCESSORS = {name: {"mode": name} for name in modes_of("cells")} | ODD


def page_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Return a size whose sides are multiples of 16 for the processor that keeps sizes."""
    height, width = size
    return (-(-height // 16) * 16, -(-width // 16) * 16) if name == "own-size" else size


def cells(change: np.ndarray, side: int = 64) -> np.ndarray:
    """Return the largest value in each cell of 64 x 64 pixels of a view: (height, width) -> (rows, columns)."""
    height, width = (-(-length // side) for length in change.shape)
    padded = np.zeros((height * side, width * side), change.dtype)
    padded[: change.shape[0], : change.shape[1]] = change
    return padded.reshape(height, side, width, side).max(axis=(1, 3))


def overlap(boxes: np.ndarray, mark: tuple[int, ...], margin: tuple[float, float]) -> np.ndarray:
    """Return whether boxes `(n, 4)` overlap with a mark, after it has grown by a margin across and down."""
    across, down = margin
    left, top, right, bottom = mark[0] - across, mark[1] - down, mark[2] + across, mark[3] + down
    wide = np.minimum(boxes[:, 2], right) > np.maximum(boxes[:, 0], left)
    return wide & (np.minimum(boxes[:, 3], bottom) > np.maximum(boxes[:, 1], top)) & (left < right) & (top < bottom)


def check_mark(
    change: np.ndarray, boxes: np.ndarray, mark: tuple[int, ...], scale: tuple[float, float], resample: int
) -> None:
    """Check that exactly those cells changed whose boxes hold the mark, as far as the filter is sharp.

    `scale` is the size of a view's pixel on the page, down and across.
    """
    found, boxes = (cells(change) > 20).ravel(), boxes.reshape(-1, 4)
    # Bicubic looks two pixels far, of the page or of the view, whichever are larger. Nearest takes the pixel of the
    # page at the centre of one of the view, so it can only miss less than a pixel of the view.
    blur = (2 * max(scale[1], 1), 2 * max(scale[0], 1))
    missed = (-0.6 * scale[1], -0.6 * scale[0]) if resample == NEAREST else (-blur[0], -blur[1])
    seen = overlap(boxes, mark, (0, 0) if resample == NEAREST else blur)
    assert not (found & ~seen).any(), "a token changed that does not show the mark"
    assert not (overlap(boxes, mark, missed) & ~found).any(), "a token that shows the mark did not change"


@pytest.mark.parametrize("resample", [NEAREST, BICUBIC])
@pytest.mark.parametrize("name", PROCESSORS)
def test_painted_marks_are_found(name: str, resample: int) -> None:
    processor = DeepEncoderImageProcessor(**PROCESSORS[name], resample=resample)
    rng = np.random.default_rng(len(name) + resample)
    for size in SIZES if name in ODD else SIZES[:4]:
        height, width = page_size(name, size)
        layout = processor.get_token_layout(height, width)
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        right = min(width, left + int(rng.integers(1, width // 4 + 2)))
        bottom = min(height, top + int(rng.integers(1, height // 4 + 2)))
        mark = (left, top, right, bottom)
        page = Image.new("RGB", (width, height), (255, 255, 255))
        blank = processor(page, **RAW)
        ImageDraw.Draw(page).rectangle((left, top, right - 1, bottom - 1), (0, 0, 0))
        inputs = processor(page, **RAW)
        change = np.abs(inputs["pixel_values"][0, 0].astype(int) - blank["pixel_values"][0, 0])
        assert cells(change).shape == layout.view_index.shape
        scale = (height / change.shape[0], width / change.shape[1])
        if processor.do_pad and processor.do_resize:
            scale = (max(scale),) * 2
        check_mark(change, layout.boxes[layout.view_index], mark, scale, resample)
        if "pixel_values_local" not in inputs:
            assert layout.tile_index.size == layout.mosaic_index.size == 0
            continue
        columns, rows = inputs["patches_grid"][0]
        tiles = inputs["pixel_values_local"][:, 0].astype(int)
        side = tiles.shape[-1]
        assert len(layout.tile_index) == len(tiles) == columns * rows
        scale = (height / (rows * side), width / (columns * side))
        for own, tile, old in zip(layout.tile_index, tiles, blank["pixel_values_local"][:, 0], strict=True):
            check_mark(np.abs(tile - old), layout.boxes[own], mark, scale, resample)


@pytest.mark.parametrize("name", PROCESSORS)
def test_padding_is_where_no_page_is(name: str) -> None:
    """A black page on a background that is not black."""
    processor = DeepEncoderImageProcessor(**PROCESSORS[name])
    for size in [*SIZES, (1, 5000), (5000, 1), (1023, 1024)]:
        height, width = page_size(name, size)
        layout = processor.get_token_layout(height, width)
        view = processor(Image.new("RGB", (width, height)), **RAW)["pixel_values"][0, 0]
        expected = cells((view == 0).astype(int)) == 0
        assert np.array_equal(layout.is_padding[layout.view_index], expected), size
        mask = processor.get_token_mask([(height, width)])
        assert mask.dtype == torch.bool and np.array_equal(mask.numpy(), ~expected.reshape(1, -1))
        assert not layout.is_padding[layout.mosaic_index].any()
        boxes, padding = layout.boxes[layout.view_index], expected
        empty = (boxes[..., 0] == boxes[..., 2]) | (boxes[..., 1] == boxes[..., 3])
        assert np.array_equal(empty, padding)


def test_boxes_by_hand() -> None:
    """A page of 1754 x 1240 pixels: 724 columns of a view of 1024 at an offset of 150, and 2 x 3 tiles of 640."""
    layout = DeepEncoderImageProcessor(mode="gundam").get_token_layout(1754, 1240)
    assert isinstance(layout, TokenLayout) and len(layout) == 903 and layout.page_size == (1754, 1240)
    assert layout.view_index.shape == (16, 16) and layout.tile_index.shape == (6, 10, 10)
    assert layout.mosaic_index.shape == (30, 20)
    first = layout.boxes[layout.view_index[0]]
    assert layout.is_padding[layout.view_index[3]].tolist() == [True] * 2 + [False] * 12 + [True] * 2
    np.testing.assert_allclose(first[2], [0, 0, (192 - 150) * 1240 / 724, 1754 / 16])
    np.testing.assert_allclose(first[3], [42 * 1240 / 724, 0, 106 * 1240 / 724, 1754 / 16])
    np.testing.assert_allclose(first[13], [(832 - 150) * 1240 / 724, 0, 1240, 1754 / 16])
    assert (first[:2, [0, 2]] == 0).all() and (first[14:, [0, 2]] == 1240).all()
    np.testing.assert_allclose(layout.boxes[layout.tile_index[3, 2, 1]], [682, 701.6, 744, 760.0666666666667])
    assert "boxes" not in repr(layout) and "1754" in repr(layout)


@pytest.fixture(scope="module")
def small_model() -> Any:
    return DeepEncoder(DeepEncoderConfig.tiny(image_size=64)).eval()


@pytest.mark.parametrize("size", [(100, 260), (300, 120), (30, 30)])
def test_the_order_is_that_of_the_model(small_model: Any, size: tuple[int, int]) -> None:
    fields = {"size": {"height": 80, "width": 192}, "crop_to_patches": True, "tile_size": 112, "max_patches": 4}
    processor = DeepEncoderImageProcessor(**fields)
    images = [Image.effect_noise((width, height), 90).convert("RGB") for height, width in ((90, 40), size)]
    with torch.no_grad():
        outputs = small_model(**processor(images, return_tensors="pt"))
        projected = small_model.projector(outputs.last_hidden_state[1])
        local = outputs.local_last_hidden_state
        tiles = small_model.projector(local) if local is not None else torch.zeros(0, 4, 48)
    tokens, layout = outputs.vision_tokens[1], processor.get_token_layout(*size)
    assert len(tokens) == len(layout) == processor.get_number_of_image_tokens(*size)
    close = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(tokens[layout.view_index.ravel()], projected, **close)
    assert len(layout.tile_index) == len(tiles)
    for own, tile in zip(layout.tile_index, tiles, strict=True):
        torch.testing.assert_close(tokens[own.ravel()], tile, **close)
    newlines = tokens[torch.from_numpy(layout.kind == "newline")]
    assert len(newlines) == len(layout.view_index) + len(layout.mosaic_index)
    assert (newlines == small_model.image_newline).all()
    assert layout.kind[-1] == "separator" and (tokens[-1] == small_model.view_separator).all()
    assert set(layout.kind[layout.view_index.ravel()]) == {"view"}
    assert np.isnan(layout.boxes[[-1]]).all() and np.isnan(layout.boxes[layout.kind == "newline"]).all()
    everything = np.concatenate([layout.view_index.ravel(), layout.tile_index.ravel(), layout.mosaic_index.ravel()])
    assert np.isfinite(layout.boxes[everything]).all()
    assert sorted(set(everything)) == np.flatnonzero(np.isin(layout.kind, ["view", "tile"])).tolist()


def test_a_mask_pools_what_is_not_padding(small_model: Any) -> None:
    processor = DeepEncoderImageProcessor(size={"height": 192, "width": 192})
    sizes = [(300, 100), (100, 300), (50, 50)]
    mask = processor.get_token_mask(sizes)
    assert mask.shape == (3, 9)
    assert mask[0].view(3, 3).tolist() == [[False, True, False]] * 3
    assert mask[1].view(3, 3).tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert mask[2].all()
    assert torch.equal(processor.get_token_mask(torch.tensor(sizes)), mask)
    assert processor.get_token_mask(sizes, mode="tiny").shape == (3, 64)
    for bad in ([], [(5,)], 5, ["ab", "cd"]):
        with pytest.raises(ValueError, match="image_sizes|height and width"):
            processor.get_token_mask(bad)
    with pytest.raises(ValueError, match="image_sizes.*one size"):
        processor.get_token_mask([(64, 64), (64, 128)], do_resize=False)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(90, 61), (23, 70), (300, 17)])
def test_maps_are_those_of_a_loop_over_boxes(name: str, size: tuple[int, int]) -> None:
    processor = DeepEncoderImageProcessor(**PROCESSORS[name])
    height, width = page_size(name, size)
    layout = processor.get_token_layout(height, width)
    for kind in ("view", "tile") if layout.tile_index.size else ("view",):
        index = layout.view_index if kind == "view" else layout.mosaic_index
        values = np.random.default_rng(0).normal(size=index.shape).astype(np.float32)
        values[layout.is_padding[index]] = np.nan
        expected = np.full((height, width), np.inf, np.float32)
        y, x = np.mgrid[:height, :width] + 0.5
        for value, (left, top, right, bottom) in zip(values.ravel(), layout.boxes[index.ravel()], strict=True):
            expected[(left <= x) & (x < right) & (top <= y) & (y < bottom)] = value
        found = layout.map_to_page(values, kind)
        assert found.shape == (height, width) and found.dtype == np.float32
        assert np.array_equal(found, expected)
        assert layout.map_to_page(torch.from_numpy(values), kind, smooth=True).dtype == np.float32
        for px, py in ((0, 0), (width - 0.5, height - 0.5), (width / 3, height / 2)):
            token = layout.find_token(px, py, kind)
            left, top, right, bottom = layout.boxes[token]
            assert layout.kind[token] == kind and left <= px < right and top <= py < bottom


@pytest.mark.parametrize("name", ["base", "small", "odd-tiles"])
def test_smooth_maps_are_linear_between_centres(name: str) -> None:
    """A plane comes back as it is between the outermost centres, and is constant beyond; padding has no part in it."""
    processor = DeepEncoderImageProcessor(**PROCESSORS[name])
    height, width = 211, 130
    layout = processor.get_token_layout(height, width)
    for kind in ("view", "tile") if layout.tile_index.size else ("view",):
        index = layout.view_index if kind == "view" else layout.mosaic_index
        boxes, padding = layout.boxes[index], layout.is_padding[index]
        x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
        values = np.where(padding, np.nan, 3 * x - 2 * y + 1)
        across = np.clip(np.arange(width) + 0.5, x[~padding].min(), x[~padding].max())
        down = np.clip(np.arange(height) + 0.5, y[~padding].min(), y[~padding].max())
        expected = 3 * across - 2 * down[:, None] + 1
        np.testing.assert_allclose(layout.map_to_page(values, kind, smooth=True), expected, rtol=1e-4, atol=1e-3)


def test_a_token_larger_than_its_view_shows_all_of_it() -> None:
    fields = {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "tile_size": 32, "downsample_ratio": 2**70}
    layout = DeepEncoderImageProcessor(**fields).get_token_layout(40, 80)
    assert layout.boxes[layout.view_index].tolist() == [[[0, 0, 80, 40]]]
    assert layout.boxes[layout.mosaic_index].tolist() == [[[0, 0, 40, 40], [40, 0, 80, 40]]]


def test_mistakes() -> None:
    processor = DeepEncoderImageProcessor()
    layout = processor.get_token_layout(100, 200)
    for values in (np.zeros((16, 15)), np.zeros(256), 3):
        with pytest.raises(ValueError, match=r"values.*\(16, 16\)"):
            layout.map_to_page(values)
    for kind in ("tile", "newline", None):
        with pytest.raises(ValueError, match="kind"):
            layout.map_to_page(np.zeros((16, 16)), kind)
    for point in ((200, 5), (-1, 5), (5, 100), (float("nan"), 5)):
        with pytest.raises(ValueError, match="x and y.*200 x 100"):
            layout.find_token(*point)
    with pytest.raises(ValueError, match="too long and thin"):
        processor.get_token_layout(1, 5000).map_to_page(np.zeros((16, 16)))
    with pytest.raises(ValueError, match="nonsense"):
        processor.get_token_layout(5, 5, nonsense=1)
    with pytest.raises(ValueError, match="'huge'"):
        processor.get_token_layout(5, 5, mode="huge")


def test_absurd_sizes_are_refused_before_memory_is_taken() -> None:
    processor = DeepEncoderImageProcessor()
    thin = processor.get_token_layout(2**31 - 1, 2**30)
    assert len(thin) == 273 and thin.boxes[thin.view_index[-1, 8], 3] == 2**31 - 1
    with pytest.raises(ValueError, match="page_size.*134217728"):
        thin.map_to_page(np.zeros((16, 16)))
    for fields in ({"do_resize": False}, {"patch_size": 1, "downsample_ratio": 1, "size": (8192, 8192)}):
        for ask in (processor.get_token_layout, lambda h, w, **kw: processor.get_token_mask([(h, w)], **kw)):
            with pytest.raises(ValueError, match=r"height=1073741824 and width=1073741824 .* 2097152"):
                ask(2**30, 2**30, **fields)


def test_queries_have_the_boxes_of_their_views() -> None:
    layout = DeepEncoderImageProcessor(mode="v2").get_token_layout(1754, 1240)
    assert len(layout) == 6 * 144 + 257 and layout.has_queries
    assert set(layout.kind[:-1]) == {"query"} and layout.kind[-1] == "separator"
    assert layout.tile_index.shape == (6, 1, 144) and layout.view_index.shape == (1, 256)
    assert np.array_equal(np.append(layout.tile_index.ravel(), layout.view_index.ravel()), np.arange(6 * 144 + 256))
    # The fourth tile of 2 x 3 is the second of the second row.
    np.testing.assert_allclose(layout.boxes[layout.tile_index[3, 0]], [[620, 1754 / 3, 1240, 2 * 1754 / 3]] * 144)
    assert (layout.boxes[layout.view_index[0]] == [0, 0, 1240, 1754]).all() and np.isnan(layout.boxes[-1]).all()
    assert not layout.is_padding.any()
    for call in (lambda: layout.find_token(1, 1), lambda: layout.map_to_page(np.zeros((16, 16)))):
        with pytest.raises(ValueError, match="learned queries"):
            call()
    mask = DeepEncoderImageProcessor(mode="v2").get_token_mask([(1754, 1240)])
    assert mask.shape == (1, 256) and mask.all()
    # In another mode, tokens are still queries.
    assert DeepEncoderImageProcessor(mode="v2").get_number_of_image_tokens(1754, 1240, mode="base") == 257
    with pytest.raises(ValueError, match="token_scheme must be one of 'cells', 'queries', got 'words'"):
        DeepEncoderImageProcessor(token_scheme="words")
