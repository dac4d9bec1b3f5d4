"""From bytes to the values that the encoder reads, and back.

Unusual: rescaling and normalising are one multiplication and one addition per channel, both in float32. Arrays and
tensors go through the same two operations, so the values are equal to the last bit whichever of them computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Normalization"]


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
        """Build the map from an image processor's fields; the identity if it neither rescales nor normalises."""
        factor = np.full(3, rescale_factor if do_rescale else 1.0)
        mean = np.broadcast_to(np.asarray(image_mean if do_normalize else 0.0, np.float64), 3)
        std = np.broadcast_to(np.asarray(image_std if do_normalize else 1.0, np.float64), 3)
        return cls((factor / std).astype(np.float32), (-mean / std).astype(np.float32))

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
