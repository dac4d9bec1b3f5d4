"""A sample page as an encoder sees it, for the model card."""

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..processing import DeepEncoderImageProcessor
from ..processing.placement import cell_fields
from ..processing.visualization import draw_encoding

__all__ = ["draw_sample_page"]

SAMPLE_PAGE = Path(__file__).with_name("sample_page.png")
LARGEST_SIDE = 512


@torch.no_grad()
def draw_sample_page(model: Any) -> bytes:
    """Encode the sample page with a [`DeepEncoder`], and draw the page and its features as a PNG file."""
    sam = model.config.sam_config
    side = LARGEST_SIDE - LARGEST_SIDE % sam.total_stride
    fields: dict[str, Any] = {"size": {"height": side, "width": side}, "do_pad": True, **cell_fields(model.config)}
    processor: Any = DeepEncoderImageProcessor(**fields)
    inputs = processor(SAMPLE_PAGE, return_tensors="pt")
    # `eval` changes every part, and a user may train only one of the halves: restore each part's own flag.
    training = {part: part.training for part in model.modules()}
    outputs = model.eval()(inputs["pixel_values"].to(model.device))
    for part, flag in training.items():
        part.training = flag
    # (3, height, width) -> (height, width, 3)
    page = Image.fromarray(processor.denormalize_pixels(inputs["pixel_values"][0]).permute(1, 2, 0).numpy())
    grid = round(outputs.last_hidden_state.shape[1] ** 0.5)
    with Image.open(SAMPLE_PAGE) as sample:
        padding = ~processor.get_token_mask([(sample.height, sample.width)]).numpy().reshape(grid, grid)
    # (grid * grid, channels) -> (grid, grid, channels)
    drawing = draw_encoding(page, outputs.last_hidden_state[0].unflatten(0, (grid, grid)), view_padding=padding)
    buffer = io.BytesIO()
    drawing.save(buffer, "PNG")
    return buffer.getvalue()
