"""Normalising pixels, by itself and by the image processor's methods, and the way back."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepencoder import DeepEncoderImageProcessor
from deepencoder.processing.normalization import Normalization

BYTES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FIELDS: dict[str, dict[str, Any]] = {
    "default": {},
    "own means": {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.5, 0.2, 0.1)},
    "lists": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.1]},
    "only rescaled": {"do_normalize": False},
    "only normalised": {"do_rescale": False, "image_mean": (127.5,) * 3, "image_std": (127.5,) * 3},
    "neither": {"do_rescale": False, "do_normalize": False},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_equal_to_a_call_bit_for_bit(fields: dict[str, Any]) -> None:
    processor = DeepEncoderImageProcessor(size={"height": 64, "width": 64}, **fields)
    images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in BYTES]
    expected = processor(images, return_tensors="pt")["pixel_values"]
    found = processor.normalize_pixels(BYTES)
    assert found.dtype == torch.float32 and torch.equal(found, expected.float())
    assert torch.equal(processor.denormalize_pixels(found), BYTES)


def test_floats_in_0_to_255_are_pixels_and_stay_as_they_are() -> None:
    processor = DeepEncoderImageProcessor()
    floats = BYTES.float()
    assert torch.equal(processor.normalize_pixels(floats), processor.normalize_pixels(BYTES))
    assert torch.equal(floats, BYTES.float())
    assert torch.equal(processor.normalize_pixels(BYTES[0]), processor.normalize_pixels(BYTES)[0])


def test_denormalised_pixels_are_rounded_and_clamped() -> None:
    processor = DeepEncoderImageProcessor()
    values = torch.tensor([-1.5, -1.0, 0.001, 1.0, 7.0]).expand(3, 1, 5)
    found = processor.denormalize_pixels(values)
    assert found.dtype == torch.uint8 and found[0, 0].tolist() == [0, 0, 128, 255, 255]
    assert processor.denormalize_pixels(processor.normalize_pixels(BYTES).bfloat16()).shape == BYTES.shape


def test_arrays_and_tensors_go_through_the_same_operations() -> None:
    normalization = Normalization.from_fields(True, 1 / 255, True, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    expected = normalization.normalize(BYTES[0]).numpy()
    for channel in range(3):
        out = np.empty((64, 64), np.float32)
        normalization.write(BYTES[0, channel].numpy(), channel, out)
        assert np.array_equal(out, expected[channel])
