"""Checks of the arguments of a forward pass, which name the argument and say what to pass instead."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers.utils import TransformersKwargs

__all__ = ["check_options", "check_pixel_values", "check_tensor"]

# What transformers' decorators of a forward pass add if the configuration says so, or take from its arguments.
FROM_DECORATORS = (
    "return_dict",
    "use_cache",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "vision_aspect_ratio",
    "debug_io",
    "debug_io_dir",
    "prune_layers",
)
OPTIONS = frozenset((*FROM_DECORATORS, *TransformersKwargs.__annotations__))
"""The options that any forward pass accepts, by transformers' convention."""
PREPARED = frozenset(("pixel_values", "pixel_values_local", "patches_grid", "num_local_patches"))
"""What the image processor returns. All of it may be passed to every model; only a DeepEncoder uses the tiles."""


def check_options(options: Mapping[str, Any], model: str, *arguments: str) -> dict[str, Any]:
    """Return the options that transformers knows; raise `TypeError` for any other, such as a misspelt one.

    It leaves out what the image processor returns, and unknown options that are None: wrappers such as peft's pass the
    arguments of text models to every model.

    Args:
        options: the keyword arguments that are not among the parameters of the forward pass.
        model: name of the model's class.
        arguments: names of its parameters beside what the image processor returns.
    """
    for name, value in options.items():
        if name not in OPTIONS | PREPARED and value is not None:
            near = get_close_matches(name, sorted(OPTIONS | PREPARED | {*arguments}), n=1)
            hint = f": did you mean {near[0]!r}?" if near else "."
            raise TypeError(f"{model}.forward got an unexpected argument {name[:100]!r}{hint}")
    return {name: value for name, value in options.items() if name in OPTIONS}


def check_tensor(values: Any, name: str) -> None:
    """Raise `TypeError` unless `values` is a tensor, and `ValueError` unless it holds floats."""
    if not isinstance(values, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(values).__name__}: pass what the image processor returns with "
            'return_tensors="pt".'
        )
    if not values.is_floating_point():
        raise ValueError(
            f"{name} must hold normalised floats, got dtype {values.dtype}: use the image processor, or its "
            "normalize_pixels for pixels of 0 to 255."
        )


def check_pixel_values(pixel_values: Any, name: str, num_channels: int, patch_size: int) -> None:
    """Check normalised pixels.

    Raises:
        `TypeError`: `pixel_values` is not a tensor.
        `ValueError`: it does not hold floats, or is not `(batch, num_channels, height, width)` with whole patches.
    """
    check_tensor(pixel_values, name)
    shape = tuple(pixel_values.shape)
    if len(shape) != 4:
        raise ValueError(f"{name} must have 4 dimensions (batch, channels, height, width), got shape {shape}.")
    if shape[1] != num_channels:
        raise ValueError(f"{name} must have {num_channels} channels, got {shape[1]} (shape {shape}).")
    for side, pixels in (("height", shape[2]), ("width", shape[3])):
        if pixels <= 0 or pixels % patch_size:
            raise ValueError(
                f"{name} must have a {side} that is a positive multiple of the patch size {patch_size}, got {pixels} "
                f"(shape {shape})."
            )
