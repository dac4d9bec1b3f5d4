"""Converts anything that a user may pass as an image to an RGB `PIL.Image`, or raises an error that names the image.

Unusual: 16-bit images keep their upper eight bits, where Pillow would clip them to white. Transparency is dropped, as
in DeepSeek-OCR's own loader. The EXIF orientation is applied to files, but not to images that the caller has decoded.
Images are untrusted input, so Pillow's limit on their size stays in force, and only formats that are decoded inside
this process are opened: Pillow recognises a format from the content, whatever the name of the file.
"""

import base64
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension

from .downloads import download

__all__ = ["flatten_images", "image_formats", "to_rgb", "turn_upright"]

CHANNELS = (1, 2, 3, 4)
PILLOW_FORMATS = frozenset(
    "AVIF BLP BMP CUR DCX DDS DIB FITS FLI FTEX GBR GIF ICNS ICO IM IMT JPEG JPEG2000 MCIDAS MPO MSP PCD PCX PIXAR "
    "PNG PPM PSD QOI SGI SPIDER SUN TGA TIFF WEBP XBM XPM XVTHUMB".split()
)
"""The formats of Pillow that it decodes itself. EPS is handed to an external program, IPTC may hold any other format
(EPS, too), and the rest of Pillow's formats are only identified."""

PLAIN_FORMATS = frozenset({"JPEG", "PNG"})
"""Formats whose image, once decoded, no longer needs its file. Those with several frames may read it again."""


def image_formats() -> list[str]:
    """Return the names of the formats that may be opened, for `Image.open(..., formats=...)`.

    These are the formats that Pillow decodes itself, and those that other packages have added to Pillow.
    """
    Image.preinit()  # The formats are tried in the order of their registration; this registers the common ones first.
    Image.init()
    added = {name for name, (factory, _) in Image.OPEN.items() if not factory.__module__.startswith("PIL.")}
    return [name for name in Image.ID if name in PILLOW_FORMATS or name in added]


def flatten_images(images: Any) -> list[Any]:
    """Return one image, a list, a nested list or a stacked array of images as a flat list.

    Raises:
        `ValueError`: `images` holds no image.
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
    """Convert an image to RGB with eight bits per channel.

    Args:
        image: a `PIL.Image`, a path, a URL, or a `numpy.ndarray` or `torch.Tensor` of shape `(H, W)`, `(H, W, C)` or
            `(C, H, W)`. Arrays have 1 to 4 channels and hold integers in [0, 255], 16-bit integers, or floats in
            [0, 1] or [0, 255].
        index (`int`, defaults to 0): position of the image in its batch, for error messages.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"` for arrays; inferred by default.

    Raises:
        `FileNotFoundError`: the file does not exist.
        `TypeError`: `image` is of a type that holds no image.
        `ValueError`: the image cannot be used; the message names it and gives the reason.
    """
    label = f"images[{index}]"
    if isinstance(image, torch.Tensor):
        image = _to_array(image, label)
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


def _to_array(tensor: torch.Tensor, label: str) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (TypeError, RuntimeError) as error:  # It is sparse, quantised or on the meta device.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{label} is a tensor whose values cannot be read: {reason}") from error


def _open(name: str, label: str) -> Image.Image:
    remote = name.startswith(("http://", "https://", "data:image/"))
    if not remote and not (name and Path(name).exists()):
        raise FileNotFoundError(f"{label}: there is no such file.")
    try:
        if name.startswith(("http://", "https://")):
            return Image.open(BytesIO(download(name)), formats=image_formats())
        if name.startswith("data:image/"):
            content = base64.b64decode(name.partition(",")[2], validate=True)
            return Image.open(BytesIO(content), formats=image_formats())
        return Image.open(name, formats=image_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{label} is too large to decode safely: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{label} is not an image that Pillow can read.") from error
    except Exception as error:
        raise ValueError(f"{label} could not be opened: {error}") from error


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of an image that was opened from a file and decoded.

    `ImageOps.exif_transpose` copies an image that has none, which costs as much as decoding it.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    has_frames = getattr(image, "is_animated", False)
    if image.format in PLAIN_FORMATS and not has_frames and orientation not in range(2, 9):
        return image
    return ImageOps.exif_transpose(image)


def _decode(image: Image.Image, label: str, from_file: bool = False) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{label} must not be empty, got {image.width} x {image.height} pixels.")
    # An image that was opened elsewhere has a format, and is decoded only now, in `load`.
    if getattr(image, "tile", None) and image.format not in (None, *image_formats()):
        raise ValueError(f"{label} is of the format {image.format}, which is not decoded.")
    try:
        image.load()
        if from_file:
            image = turn_upright(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # This gives the same colours and avoids a warning of Pillow.
        if image.mode != "RGB" and image.mode != "F" and not image.mode.startswith("I"):
            image = image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more.
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
    """Return an array of shape `(H, W)` for a single channel, and of shape `(H, W, C)` for several."""
    first, last = array.shape[0], array.shape[2]
    if input_data_format is not None:
        channels_first = ChannelDimension(input_data_format) == ChannelDimension.FIRST
    elif (first in CHANNELS) != (last in CHANNELS):
        channels_first = first in CHANNELS
    else:
        # Both axes could hold the channels. Colour is more likely than an image that is one or two pixels high;
        # otherwise assume channels first, as transformers does.
        channels_first = not (last in (3, 4) and first in (1, 2))
    channels = first if channels_first else last
    if channels not in CHANNELS:
        raise ValueError(f"{label} must have 1 to 4 channels, first or last, got shape {array.shape}.")
    if channels_first:
        array = np.moveaxis(array, 0, -1)
    return array[..., 0] if channels == 1 else array


def _to_bytes(array: np.ndarray, label: str) -> np.ndarray:
    """Return the pixels with eight bits per channel. Their range is inferred from the dtype and the maximum."""
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
        # An image whose maximum is 1.5 does not span [0, 255]: refuse a range that overshoots 1, as the image would
        # come out black.
        limit = 1 if high < 2 else 255
    else:
        # Integers wider than 16 bits are a 16-bit image that a loader widened, if any of them exceeds eight bits.
        limit = 65535 if (kind == "u" and array.dtype.itemsize == 2) or high > 255 else 255
    if low < 0 or high > limit:
        allowed = "floats in [0, 1] or [0, 255]" if kind == "f" else "integers in [0, 255] or 16-bit integers"
        raise ValueError(f"{label} must hold {allowed}, got values from {low} to {high}.")
    if kind == "f":
        return np.rint(array.astype(np.float64) * (255 // limit)).astype(np.uint8)
    return (array >> 8 if limit == 65535 else array).astype(np.uint8)
