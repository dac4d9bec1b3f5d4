"""The image processor with its modes and tiles, where each token lies, and pictures of what the encoder sees."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .image_processing import DeepEncoderImageProcessor
    from .stitching import stitch_vision_tokens
    from .token_layout import TokenLayout
    from .token_pooling import VectorOptions
    from .visualization import draw_heat_map, draw_similarity

__all__ = [
    "DeepEncoderImageProcessor",
    "TokenLayout",
    "VectorOptions",
    "draw_heat_map",
    "draw_similarity",
    "stitch_vision_tokens",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "DeepEncoderImageProcessor": ".image_processing",
            "TokenLayout": ".token_layout",
            "VectorOptions": ".token_pooling",
            "draw_heat_map": ".visualization",
            "draw_similarity": ".visualization",
            "stitch_vision_tokens": ".stitching",
        },
    )
