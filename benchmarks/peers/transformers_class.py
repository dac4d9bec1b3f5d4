"""transformers' `UnlimitedOcrVisionModel` with SDPA, which has the same architecture up to the fused tokens."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrVisionModel

from .files import TRANSFORMERS


def open_class(folder: str, sides: Sequence[int], threads: int, precision: str) -> Any:
    torch.set_num_threads(threads)
    model = UnlimitedOcrVisionModel.from_pretrained(
        Path(folder) / TRANSFORMERS, dtype=getattr(torch, precision), attn_implementation="sdpa"
    ).eval()

    @torch.inference_mode()
    def run(pixel_values: np.ndarray, pixel_values_local: np.ndarray | None = None, patches_grid: Any = None) -> Any:
        """Call the model for the view, and again for the tiles."""

        def encode(pixels: np.ndarray) -> torch.Tensor:
            return model(torch.from_numpy(pixels).to(model.dtype)).last_hidden_state

        return SimpleNamespace(
            last_hidden_state=encode(pixel_values),
            local_last_hidden_state=None if pixel_values_local is None else encode(pixel_values_local),
        )

    return run
