"""From bytes to the values that the encoder reads, and back.

Unusual: rescaling and normalising are one multiplication and one addition per channel, both in float32. Arrays and
tensors go through the same two operations, so the values are equal to the last bit whichever of them computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any

import numpy as np
import torch

__all__ = ["Normalization"]


def _three_numbers(name: str, value: float | Sequence[float], positive: bool = False) -> np.ndarray:
    """Return a field's values for the three channels, `(3,)`; one number stands for all of them."""
    kind = "positive" if positive else "finite"
    try:
        numbers = np.broadcast_to(np.asarray(value, np.float64), 3)
    except (TypeError, ValueError, OverflowError):
        numbers = np.full(3, np.nan)
    if not np.isfinite(numbers).all() or (positive and not (numbers > 0).all()):
        raise ValueError(f"{name} must be one {kind} number or three, got {shorten(value)}.")
    return numbers


@dataclass(frozen=True)
class Normalization:
    """The affine map from pixels in 0..255 to normalised values.

    Args:
        scale, shift (`numpy.ndarray` of shape `(3,)`, float32): factor and summand of each channel.
    """

    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def from_fields(
        cls,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        **_: Any,
    ) -> "Normalization":
        """Build the map from an image processor's fields; the identity if it neither rescales nor normalises.

        Raises:
            `ValueError`: a field that is used is no finite number, or a divisor is not positive.
        """
        factor = _three_numbers("rescale_factor", rescale_factor if do_rescale else 1.0, positive=True)
        mean = _three_numbers("image_mean", image_mean if do_normalize else 0.0)
        std = _three_numbers("image_std", image_std if do_normalize else 1.0, positive=True)
        with np.errstate(over="ignore"):
            scale, shift = (factor / std).astype(np.float32), (-mean / std).astype(np.float32)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all() and scale.all()):
            raise ValueError(
                f"rescale_factor={rescale_factor}, image_mean={shorten(image_mean)} and image_std="
                f"{shorten(image_std)} give values that float32 cannot hold."
            )
        return cls(scale, shift)

    def write(self, pixels: np.ndarray, channel: int, out: np.ndarray) -> None:
        """Write the normalised values of one channel's pixels into `out`, a float32 array of the same shape."""
        np.multiply(pixels, self.scale[channel], out=out, dtype=np.float32)
        out += self.shift[channel]

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the normalised values `(..., 3, H, W)` of pixels of the same shape, in float32 on their device."""
        scale, shift = self._constants(pixels.device)
        return pixels.to(torch.float32, copy=True).mul_(scale).add_(shift)

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the pixels `(..., 3, H, W)` of normalised values of the same shape, in uint8 on their device."""
        scale, shift = self._constants(pixel_values.device)
        pixels = (pixel_values.to(torch.float32) - shift) / scale
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def _constants(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # (3,) -> (3, 1, 1)
        scale, shift = (torch.from_numpy(values).to(device)[:, None, None] for values in (self.scale, self.shift))
        return scale, shift
