"""Checks of the arguments of a forward pass."""

import torch

__all__ = ["check_pixel_values"]


def check_pixel_values(pixel_values: torch.Tensor, name: str, num_channels: int, patch_size: int) -> None:
    """Raise `ValueError` unless `pixel_values` is `(batch, num_channels, height, width)` with whole patches."""
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
