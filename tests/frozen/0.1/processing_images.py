# deepencoder 0.1.0: processing/images.py, flattened for this repository. Licence: Apache-2.0.
"""Whatever a user calls an image -> an RGB `PIL.Image`, or an error that says which image and why.

Unusual: 16-bit images keep their upper eight bits (Pillow alone would clip them to white); transparency is dropped, as
in DeepSeek-OCR's own loader; the orientation in EXIF is honoured for files, and not for images somebody else decoded.
Images are untrusted: Pillow's limit on their size stays on.
"""

import base64
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_session
from huggingface_hub.utils import hf_raise_for_status
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension

__all__ = ["flatten_images", "to_rgb"]

URL_TIMEOUT = 30.0  # seconds
CHANNELS = (1, 2, 3, 4)


def flatten_images(images: Any) -> list[Any]:
    """Return one image, a list, a nested list or a stacked array of images as a flat list.

    Raises:
        `ValueError`: there is no image.
    """
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        flat = [image for item in images for image in flatten_images(item)]
    elif isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        flat = list(images)
    else:
        flat = [images]
    if not flat:
        raise ValueError("images must hold at least one image, got none.")
    return flat


def to_rgb(image: Any, index: int = 0, input_data_format: str | ChannelDimension | None = None) -> Image.Image:
    """Return an image in RGB, eight bits a channel.

    Args:
        image: a `PIL.Image`; a `numpy.ndarray` or `torch.Tensor` of shape `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1
            to 4 channels, of integers in [0, 255], 16-bit integers, or floats in [0, 1] or [0, 255]; a path; a URL.
        index (`int`, defaults to 0): position in its batch, named in errors.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"` for arrays; inferred by default.

    Raises:
        `FileNotFoundError`: there is no such file.
        `TypeError`: nothing that could be an image.
        `ValueError`: an image that cannot be used; the message names it and says why.
    """
    label = f"images[{index}]"
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        return _from_array(image, label, input_data_format)
    if isinstance(image, Image.Image):
        return _decode(image, label)
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        label += f" ({name if len(name) <= 200 else name[:200] + '...'!r})"
        with _open(name, label) as opened:
            return _decode(opened, label, from_file=True)
    raise TypeError(f"{label} must be a PIL image, an array, a tensor, a path or a URL, got {type(image).__name__}.")


def _open(name: str, label: str) -> Image.Image:
    remote = name.startswith(("http://", "https://", "data:image/"))
    if not remote and not (name and Path(name).exists()):
        raise FileNotFoundError(f"{label}: there is no such file.")
    try:
        if name.startswith(("http://", "https://")):
            response = get_session().get(name, timeout=URL_TIMEOUT, follow_redirects=True)
            hf_raise_for_status(response)
            return Image.open(BytesIO(response.content))
        if name.startswith("data:image/"):
            return Image.open(BytesIO(base64.b64decode(name.partition(",")[2], validate=True)))
        return Image.open(name)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{label} is too large to decode safely: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{label} is not an image that Pillow can read.") from error
    except Exception as error:
        raise ValueError(f"{label} could not be opened: {error}") from error


def _decode(image: Image.Image, label: str, from_file: bool = False) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{label} must not be empty, got {image.width} x {image.height} pixels.")
    try:
        image.load()
        if from_file:
            image = ImageOps.exif_transpose(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours, without Pillow's warning
        if image.mode != "RGB" and image.mode != "F" and not image.mode.startswith("I"):
            image = image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        raise ValueError(f"{label} could not be decoded: {error}") from error
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_array(np.asarray(image), label, None)
    return image


def _from_array(array: np.ndarray, label: str, input_data_format: str | ChannelDimension | None) -> Image.Image:
    if array.ndim not in (2, 3):
        raise ValueError(f"{label} must have 2 or 3 dimensions, got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{label} must not be empty, got shape {array.shape}.")
    pixels = _to_bytes(array, label)
    if pixels.ndim == 3:
        pixels = _to_channels_last(pixels, label, input_data_format)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _to_channels_last(array: np.ndarray, label: str, input_data_format: str | ChannelDimension | None) -> np.ndarray:
    """Return `(H, W)` for one channel, else `(H, W, C)`."""
    first, last = array.shape[0], array.shape[2]
    if input_data_format is not None:
        channels_first = ChannelDimension(input_data_format) == ChannelDimension.FIRST
    elif (first in CHANNELS) != (last in CHANNELS):
        channels_first = first in CHANNELS
    else:
        # Both could be. Colour is likelier than an image one pixel high; else channels first, as in transformers.
        channels_first = not (last in (3, 4) and first in (1, 2))
    channels = first if channels_first else last
    if channels not in CHANNELS:
        raise ValueError(f"{label} must have 1 to 4 channels, first or last, got shape {array.shape}.")
    if channels_first:
        array = np.moveaxis(array, 0, -1)
    return array[..., 0] if channels == 1 else array


def _to_bytes(array: np.ndarray, label: str) -> np.ndarray:
    """Return the same pixels in eight bits."""
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise ValueError(f"{label} must hold integers, floats or booleans, got dtype {array.dtype}.")
    if kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{label} must hold finite values, got NaN or infinity.")
    low, high = array.min(), array.max()
    if kind == "f":
        # Nothing that peaks at 1.5 has 255 levels: rather refuse a range that overshoots 1 than turn it black.
        limit = 1 if high < 2 else 255
    else:
        # Wider integers are a 16-bit image that some loader widened, once they exceed eight bits.
        limit = 65535 if (kind == "u" and array.dtype.itemsize == 2) or high > 255 else 255
    if low < 0 or high > limit:
        allowed = "floats in [0, 1] or [0, 255]" if kind == "f" else "integers in [0, 255] or 16-bit integers"
        raise ValueError(f"{label} must hold {allowed}, got values from {low} to {high}.")
    if kind == "f":
        return np.rint(array.astype(np.float64) * (255 // limit)).astype(np.uint8)
    return (array >> 8 if limit == 65535 else array).astype(np.uint8)
