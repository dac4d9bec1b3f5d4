"""Checks of the image processor's fields, wherever they come from.

Unusual: a `preprocessor_config.json` may have been written by anybody. Calls, constructors and files pass the same
checks, and sizes are bounded before any memory is taken for them. Every error is a `ValueError` that names the field.
"""

import textwrap
from collections.abc import Mapping
from reprlib import repr as shorten
from typing import Any

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers.image_utils import PILImageResampling, SizeDict

from .normalization import Normalization
from .tiling import MAX_PATCHES, TOKEN_SCHEMES

__all__ = ["MAX_PIXELS", "check_fields", "check_types"]

MAX_PIXELS = 2**27
"""Largest number of pixels of a page's view, and of all its tiles together: 1.6 GB of normalised float32 values. That
is 327 tiles of 640 x 640, where known deployments use 32, and a view of 11585 x 11585."""
MAX_MESSAGE = 300
"""Longest message of a wrong type, in characters: it quotes the value, which may be of any length."""


def check_types(schema: type, fields: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a field that does not have the type in `schema`, a `TypedDict`."""
    plain = {name: dict(value) if isinstance(value, SizeDict) else value for name, value in fields.items()}
    try:
        validate_typed_dict(schema, plain)
    except StrictDataclassError as error:
        reason, _, _ = str(error.__cause__ or error).partition(" Errors: ")  # One error for each allowed type follows.
        raise ValueError(textwrap.shorten(reason, MAX_MESSAGE)) from error
    for name in ("size", "crop_size", "pad_size"):
        value = plain.get(name)
        if isinstance(value, (list, tuple)) and len(value) != 2:
            raise ValueError(f"{name} must be a height and a width, got {shorten(value)}.")


def _check_tiles(fields: Mapping[str, Any]) -> None:
    for name in ("min_patches", "max_patches", "tile_size", "patch_size", "downsample_ratio"):
        if fields[name] < 1:
            raise ValueError(f"{name} must be a positive integer, got {shorten(fields[name])}.")
    fewest, most, side = fields["min_patches"], fields["max_patches"], fields["tile_size"]
    if most > MAX_PATCHES:
        raise ValueError(f"max_patches must be at most {MAX_PATCHES}, got {shorten(most)}.")
    if fewest > most:
        raise ValueError(f"min_patches must be at most max_patches, got {shorten(fewest)} and {most}.")
    if fields["crop_to_patches"]:
        if not fields["do_resize"]:
            raise ValueError("crop_to_patches=True requires do_resize=True: tiles are cut from a resized image.")
        if most * side**2 > MAX_PIXELS:
            raise ValueError(
                f"max_patches={most} tiles of tile_size={shorten(side)} have more than {MAX_PIXELS} pixels, the limit "
                "for a page."
            )


def _check_size(size: SizeDict | None) -> None:
    if size is None or not (size.height and size.width and size.height > 0 and size.width > 0):
        shown = size if size is None else dict(size)
        raise ValueError(f"size must give a positive height and width in pixels, got {shorten(shown)}.")
    if size.height * size.width > MAX_PIXELS:
        raise ValueError(f"size must have at most {MAX_PIXELS} pixels, got {shorten(dict(size))}.")


def check_fields(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Check the values of fields whose types are right; return the three channels of `background_color`.

    Raises:
        `ValueError`: a field has a value that makes no sense, or would take more memory than [`MAX_PIXELS`] do.
    """
    _check_size(fields["size"])
    _check_tiles(fields)
    Normalization.from_fields(**fields)
    if fields["resample"] not in (None, *PILImageResampling):
        raise ValueError(
            f"resample must be one of {[*map(int, PILImageResampling)]}, got {shorten(fields['resample'])}."
        )
    if fields["token_scheme"] not in TOKEN_SCHEMES:
        schemes = ", ".join(map(repr, TOKEN_SCHEMES))
        raise ValueError(f"token_scheme must be one of {schemes}, got {shorten(fields['token_scheme'])}.")
    color = fields["background_color"]
    channels = (color,) * 3 if isinstance(color, int) else tuple(color)
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise ValueError(f"background_color must be one or three integers in [0, 255], got {shorten(color)}.")
    return channels
