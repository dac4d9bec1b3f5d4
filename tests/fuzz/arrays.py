"""Decoded images: arrays, tensors and other objects of any shape, type and content."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepencoder import DeepEncoderImageProcessor
from deepencoder.processing.images import flatten_images, to_rgb

from .mutations import nasty_value
from .trials import Trial, ViolationError

__all__ = ["nasty_array", "run"]

SIDES = (0, 1, 1, 2, 3, 3, 4, 5, 17, 64, 130)
DTYPES = (
    "u1",
    "u1",
    "u2",
    "u4",
    "u8",
    "i1",
    "i2",
    "i4",
    "i8",
    "f2",
    "f4",
    "f8",
    ">u2",
    ">f4",
    "g",
    "?",
    "c8",
    "O",
    "U4",
    "M8[s]",
)
TORCH_DTYPES = (torch.bfloat16, torch.float16, torch.complex64, torch.bool, torch.int16, torch.uint8, torch.uint16)
MODES = (
    "1",
    "L",
    "P",
    "PA",
    "LA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "La",
    "RGBa",
)
SPECIAL = (float("nan"), float("inf"), float("-inf"), -1.0, 1.5, 256.0, 65536.0, 1e30, 2.0**63)
MAX_VALUES = 200_000


def nasty_array(random: Random) -> np.ndarray:
    """Return an array of any shape and dtype, with a few values that no image has."""
    shape = tuple(random.choice(SIDES) for _ in range(random.choice((0, 1, 2, 2, 3, 3, 3, 3, 4, 5))))
    while np.prod(shape) > MAX_VALUES:
        shape = shape[1:]
    if random.random() < 0.5 and len(shape) >= 2:
        shape = (*shape[:2], 3)
    values = np.random.default_rng(random.getrandbits(64)).random(shape) * random.choice((1, 1, 255, 255, 65535, 1e30))
    if random.random() < 0.2 and values.size:
        values.flat[random.randrange(values.size)] = random.choice(SPECIAL)
    with np.errstate(all="ignore"):
        array = np.asarray(values).astype(random.choice(DTYPES))
    if random.random() < 0.1 and array.ndim:
        array = array[::-1]
    return array


def _nasty_tensor(random: Random) -> torch.Tensor:
    array = nasty_array(random)
    known = array.dtype.kind not in "OUMc" and array.dtype.char != "g"
    tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("=") if known else "f4", order="C"))
    match random.choice(("dtype", "plain", "plain", "gradient", "meta", "sparse", "expanded")):
        case "dtype":
            return tensor.to(random.choice(TORCH_DTYPES))
        case "gradient":
            return tensor.float().requires_grad_()
        case "meta":
            return tensor.to("meta")
        case "sparse":
            return tensor.float().to_sparse() if tensor.ndim else tensor
        case "expanded":
            return tensor.expand(2, *tensor.shape)
    return tensor


def _nasty_image(random: Random) -> Image.Image:
    size = (random.choice(SIDES), random.choice(SIDES))
    return Image.new(random.choice(MODES), size)


def _nasty_object(random: Random, depth: int = 0) -> Any:
    match random.choice(("array", "array", "array", "tensor", "tensor", "image", "json", "list", "other")):
        case "array":
            return nasty_array(random)
        case "tensor":
            return _nasty_tensor(random)
        case "image":
            return _nasty_image(random)
        case "list" if depth < 2:
            values = [_nasty_object(random, depth + 1) for _ in range(random.choice((0, 1, 2, 3)))]
            return random.choice((values, tuple(values)))
        case "json":
            return nasty_value(random)
    return random.choice((None, object(), b"", b"\x89PNG", {1, 2}, Path("nothing.png"), Image, int, iter(())))


def run(trial: Trial) -> None:
    random = trial.random
    image = _nasty_object(random)
    layout = random.choice((None, None, None, "channels_first", "channels_last", "nonsense", 3))
    way = random.choice(("rgb", "flat", "processor", "processor"))
    shape = getattr(image, "shape", getattr(image, "size", None))
    trial.note(way=way, kind=type(image), shape=shape, dtype=getattr(image, "dtype", None), layout=layout, image=image)
    with trial.may_raise(ValueError, TypeError, OSError):
        if way == "rgb":
            found = to_rgb(image, 0, layout)
            if found.mode != "RGB" or 0 in found.size:
                raise ViolationError(f"gave an image of mode {found.mode} with {found.size} pixels")
        elif way == "flat":
            flatten_images(image)
        else:
            _process(trial, image, layout)


def _process(trial: Trial, image: Any, layout: Any) -> None:
    kind = trial.random.choice(("pt", "pt", "np", None))
    crop = {"crop_to_patches": True, "tile_size": 32} if trial.chance(0.3) else {}
    processor = DeepEncoderImageProcessor(size={"height": 64, "width": 64}, **crop)
    inputs = processor(image, return_tensors=kind, **({} if layout is None else {"input_data_format": layout}))
    views = np.stack([np.asarray(view) for view in inputs["pixel_values"]])
    if views.ndim != 4 or views.shape[1:] != (3, 64, 64) or not np.isfinite(views).all():
        raise ViolationError(f"gave views of shape {views.shape}, finite: {np.isfinite(views).all()}")
