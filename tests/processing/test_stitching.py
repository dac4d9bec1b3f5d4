"""`stitch_vision_tokens` gives the model's own `vision_tokens`, in plain numpy."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from deepencoder import DeepEncoder, DeepEncoderImageProcessor, stitch_vision_tokens

from ..conftest import ROOT

VECTOR = np.zeros(2)


@torch.no_grad()
def test_ragged_batches_as_the_model_lays_them_out(tiny_model: DeepEncoder) -> None:
    side = tiny_model.config.sam_config.total_stride
    processor = DeepEncoderImageProcessor(
        size={"height": 3 * side, "width": 3 * side}, tile_size=2 * side, crop_to_patches=True, max_patches=6
    )
    shapes = ((2 * side, 7 * side), (side, side), (6 * side, 3 * side), (5 * side, 5 * side))
    pages = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes]
    inputs = processor(pages, return_tensors="pt")
    expected = tiny_model(**inputs).vision_tokens
    assert len({len(tokens) for tokens in expected}) == 4  # 3 x 1 tiles, none, 1 x 2, 2 x 2
    tiles = tiny_model.encode_view(inputs["pixel_values_local"])[1].flatten(1, 2)
    views = tiny_model.encode_view(inputs["pixel_values"])[1].flatten(1, 2)
    newline, separator = tiny_model.image_newline.numpy(), tiny_model.view_separator.numpy()
    for grids in (inputs["patches_grid"].numpy(), inputs["patches_grid"].tolist()):
        found = stitch_vision_tokens(views.numpy(), tiles.numpy(), grids, newline, separator)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-5, rtol=0)


def test_numbers_written_out_by_hand() -> None:
    view = np.arange(1.0, 5)[None, :, None]  # 1 2 / 3 4
    tiles = np.arange(10.0, 18).reshape(2, 4, 1)  # 10 11 / 12 13, and 14 15 / 16 17
    (wide,) = stitch_vision_tokens(view, tiles, [(2, 1)], [-1.0], [-2.0])
    assert wide[:, 0].tolist() == [10, 11, 14, 15, -1, 12, 13, 16, 17, -1, 1, 2, -1, 3, 4, -1, -2]
    (tall,) = stitch_vision_tokens(view, tiles, [(1, 2)], [-1.0], [-2.0])
    assert tall[:, 0].tolist() == [10, 11, -1, 12, 13, -1, 14, 15, -1, 16, 17, -1, 1, 2, -1, 3, 4, -1, -2]
    (plain,) = stitch_vision_tokens(view, None, [(1, 1)], [-1.0], [-2.0])
    assert plain[:, 0].tolist() == [1, 2, -1, 3, 4, -1, -2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"view_tokens": np.zeros((4, 2))}, "view_tokens must have 3 dimensions"),
        ({"view_tokens": np.zeros((1, 5, 2))}, "view_tokens must hold the tokens of square views, got 5"),
        ({"view_tokens": np.zeros((1, 0, 2))}, "view_tokens must hold the tokens of square views, got 0"),
        ({"tile_tokens": np.zeros((2, 4, 3))}, "tile_tokens must have 2 channels like view_tokens, got 3"),
        ({"tile_tokens": np.zeros((3, 4, 2))}, "tokens of 2 tiles for this patches_grid, got 3"),
        ({"tile_tokens": None}, "tokens of 2 tiles for this patches_grid, got 0"),
        ({"patches_grid": [(10**9, 10**9)]}, "tokens of 1000000000000000000 tiles"),
        ({"patches_grid": [(2, 1), (1, 1)]}, "patches_grid must hold 1 pairs"),
        ({"patches_grid": [(0, 2)]}, "patches_grid must hold 1 pairs of positive integers"),
        ({"patches_grid": [(2.0, 1.0)]}, "patches_grid must hold"),
        ({"newline": np.zeros(3)}, r"newline must have shape \(2,\)"),
        ({"separator": np.zeros((1, 2))}, r"separator must have shape \(2,\)"),
    ],
)
def test_mistakes_name_the_argument(changes: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {
        "view_tokens": np.zeros((1, 4, 2)),
        "tile_tokens": np.zeros((2, 4, 2)),
        "patches_grid": [(2, 1)],
        "newline": VECTOR,
        "separator": VECTOR,
    }
    assert len(stitch_vision_tokens(**arguments)) == 1
    with pytest.raises(ValueError, match=words):
        stitch_vision_tokens(**(arguments | changes))


def test_it_needs_no_torch() -> None:
    code = (
        "import deepencoder as d, sys; d.stitch_vision_tokens; assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
